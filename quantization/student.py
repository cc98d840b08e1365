"""The quantized model in memory, and how far its predictions are from the float model's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from quantization.around import around
from quantization.fitted import FittedLinear, FixedLinear
from quantization.plan import Job
from quantization.unit import full_name
from scales.calls import Call, forwards

# Tokens whose logits are there at a time: vocabularies are large.
LOGITS = 128

Function = Callable[[Tensor], Tensor]


class Student:
    """Its blocks are the modules of the float model; where these had linears to be quantized, codes compute.

    The embedding is the float model's, and so is a head that is not quantized, even where they are stored in 8 bits.
    first: what the first block is given for each sample; calls: how each block is called; teacher: what the float
    model's last block makes of each sample. Hidden states are `(1, seqlen, hidden)`.
    """

    def __init__(self, job: Job, first: Sequence[Tensor], calls: Sequence[Call], teacher: Sequence[Tensor]):
        self._source, self._units, self._head_name = job.source, job.plan.units, job.plan.head
        self._blocks = [job.source.model.get_submodule(unit) for unit in self._units]
        self._first, self._calls, self._teacher = first, calls, teacher

    @contextmanager
    def assembled(self, linears: Mapping[str, FittedLinear], floats: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the `with` all of it is in memory.

        linears: by full name, the head among them if it is quantized; floats: tensors by the model's own names, which
        stand in the checkpoint in the place of the float model's.
        """
        source, dtype = self._source, next(iter(linears.values())).dtype
        inner = {name: linear for name, linear in linears.items() if name != self._head_name}
        with ExitStack() as stack:
            stack.callback(source.release)
            stack.enter_context(around(source, self._units))
            source.materialize(self._head_name, torch.float32)
            self._float_head: Function = FixedLinear(source.model.get_submodule(self._head_name), dtype)
            self._head: Function = linears.get(self._head_name, self._float_head)
            for unit, block in zip(self._units, self._blocks, strict=True):
                source.materialize(unit, torch.float32)
                for name in inner:
                    if name.startswith(f"{unit}."):
                        source.release(name)
                for local, tensor in block.state_dict().items():
                    if full_name(unit, local) in floats:
                        tensor.copy_(floats[full_name(unit, local)])
            stack.enter_context(forwards([source.model.get_submodule(name) for name in inner], list(inner.values())))
            source.model.requires_grad_(False)
            yield

    def divergence(self, sample: int, weight: float = 1.0) -> float:
        """Kullback-Leibler, from the float model's predictions, in the mean of a sample's tokens, in nats.

        Where gradients are on, `weight` times its gradient is added to those of the scales.
        """
        hidden = self._run_blocks(sample)
        last = hidden.detach().requires_grad_(torch.is_grad_enabled())
        share, total = weight / hidden.shape[1], 0.0
        for some, wanted in zip(last.split(LOGITS, 1), self._teacher[sample].split(LOGITS, 1), strict=True):
            with torch.no_grad():
                target = self._predicted(wanted.float(), self._float_head)
            found = self._predicted(some, self._head)
            loss = nn.functional.kl_div(found, target, reduction="sum", log_target=True)
            total += loss.item()
            if loss.requires_grad:
                (loss * share).backward()
        if hidden.requires_grad:
            hidden.backward(last.grad)
        return total / hidden.shape[1]

    def _run_blocks(self, sample: int) -> Tensor:
        x = self._first[sample].float().requires_grad_(torch.is_grad_enabled())
        for block, call in zip(self._blocks, self._calls, strict=True):
            x = call.at(sample)(block, x)
        return x

    def _predicted(self, hidden: Tensor, head: Function) -> Tensor:
        model = self._source.model
        return log_probabilities(model, self._blocks, (self._head_name, head), self._calls[0], hidden)


def log_probabilities(
    model: nn.Module, blocks: Sequence[nn.Module], head: tuple[str, Function], call: Call, hidden: Tensor
) -> Tensor:
    """What the model makes of its last block's outputs, `(tokens, vocabulary)`; some scale what the head gives.

    head: its name, and what computes in its place; call: any block's; hidden: `(1, tokens, hidden)`.
    """
    (name, function), given = head, call.like_output(hidden)
    modules = [*blocks, model.get_submodule(name)]
    with forwards(modules, [*[lambda *_, **__: given] * len(blocks), function]):
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64)
        logits = model(input_ids=tokens, use_cache=False).logits
    return logits[0].float().log_softmax(-1)
