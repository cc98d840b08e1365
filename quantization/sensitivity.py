"""How much the model's predictions suffer from each grid that its linears could be put on.

For every token of a little text a next one is drawn from the float model's own prediction, and the gradient g of its
log-probability is taken back to the outputs of every linear. Where rounding moves these outputs by d, predictions
diverge by about (g . d)^2 / 2 in the mean: the Fisher information, the mean of g g^T, is the second derivative of the
Kullback-Leibler divergence (Kullback & Leibler 1951). Errors of two rows of a weight have nothing to do with each
other, so that is sum(g^2 d^2) / 2, which scatters less. Blocks are there one at a time, on the way there and back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from architectures.anatomy import template
from qlinear.errors import ModelError, is_out_of_memory
from qlinear.grid import Grid
from qlinear.progress import silent, steps
from qlinear.sizes import BITS, GROUP_SIZES
from qlinear.solvers.rtn import rtn
from quantization.allocate import Share, allocate
from quantization.around import around
from quantization.plan import Job
from quantization.precision import fast_float32, product_dtype
from quantization.streams import first_inputs, read_tokens
from quantization.student import LOGITS, log_probabilities
from quantization.unit import full_name
from scales.calls import Call
from scales.observe import run_block
from scales.ranks import ALONE

SAMPLES = 4  # of the calibration text


def with_grids(job: Job, kept: dict[str, Grid] | None = None) -> Job:
    """The job with a grid for every linear, where bits are to be spent by need; all ranks get the leading one's.

    kept: those that an earlier run has chosen. Raises `OptionError` for fewer bits than there can be, `ModelError`
    where no gradient comes through the blocks.
    """
    wanted = job.recipe.bits_per_weight
    if wanted is None:
        return job
    if job.ranks.leads and kept is None:
        kept = allocate(measure(job), wanted)
    return replace(job, grids=job.ranks.told(kept))


def measure(job: Job) -> list[Share]:
    """Of every linear that is going to be quantized; costs are nats, of all tokens together."""
    source, plan, alone = job.source, job.plan, replace(job, ranks=ALONE)
    few = replace(alone, recipe=replace(job.recipe, n_samples=SAMPLES), watch=silent)
    tokens, _ = read_tokens(few)
    hidden, calls = first_inputs(alone, tokens)
    before = []
    with fast_float32():
        for unit, call in steps(list(zip(plan.units, calls, strict=True)), len(calls), "blocks measured", job.watch):
            before.append(hidden)
            source.materialize(unit, torch.float32)
            hidden = run_block(source.model.get_submodule(unit), hidden, call)
            source.release(unit)
        shares, gradients = _measure_head(job, calls[0], hidden)
        del hidden
        for index in reversed(range(len(plan.units))):
            source.materialize(plan.units[index], torch.float32)
            shares += _measure_block(job, index, before.pop(), calls[index], gradients)
            source.release(plan.units[index])
    return shares


def _measure_head(job: Job, call: Call, hidden: list[Tensor]) -> tuple[list[Share], list[Tensor]]:
    """The output head's share, if it is going to be quantized, and the gradients by the last block's outputs."""
    source, plan, recipe = job.source, job.plan, job.recipe
    generator = torch.Generator().manual_seed(recipe.seed)
    blocks = [source.model.get_submodule(unit) for unit in plan.units]
    gradients, seen = [], _Seen()
    with around(source, plan.units):
        source.materialize(plan.head, torch.float32)
        head = source.model.get_submodule(plan.head).requires_grad_(False)
        with seen.listening({"": head} if recipe.lm_head else {}), torch.enable_grad():
            for sample in hidden:
                x = sample.float().requires_grad_()
                for some in x.split(LOGITS, 1):
                    chances = log_probabilities(source.model, blocks, (plan.head, head.forward), call, some)
                    drawn = chances.detach().exp().multinomial(1, generator=generator)
                    chances.gather(1, drawn).sum().backward()
                gradients.append(x.grad)
        shares = []
        if recipe.lm_head:
            grids = _offers(job, [head.in_features], recipe.lm_head_group_size or recipe.group_size)
            costs = {grid: seen.cost("", head.weight.data, grid) for grid in grids}
            shares.append(Share((plan.head,), head.weight.numel(), costs))
        source.release(plan.head)
    return shares, gradients


def _measure_block(job: Job, index: int, inputs: list[Tensor], call: Call, gradients: list[Tensor]) -> list[Share]:
    """gradients: by the block's outputs of each sample; they become those by its inputs."""
    unit, anatomy = job.plan.units[index], job.plan.anatomies[index]
    block = job.source.model.get_submodule(unit).requires_grad_(False)
    linears = {local: block.get_submodule(local) for local in anatomy.linears}
    seen = _Seen()
    with seen.listening(linears):
        for sample, x in enumerate(inputs):
            x = x.float().requires_grad_()
            try:
                with torch.enable_grad():
                    call.at(sample)(block, x).backward(gradients[sample])
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise ModelError(f"`bits_per_weight`: no gradient comes through {unit}; give one `w_bit`") from error
            gradients[sample] = x.grad
    found = []
    for together in seen.together(list(linears), [edge.layers for edge in anatomy.edges]):
        weights = {local: linears[local].weight.data for local in together}
        grids = _offers(job, [weight.shape[1] for weight in weights.values()], job.recipe.group_size)
        costs = {grid: sum(seen.cost(local, weights[local], grid) for local in together) for grid in grids}
        names = tuple(full_name(unit, local) for local in together)
        found.append(Share(names, sum(weight.numel() for weight in weights.values()), costs))
    return found


def _offers(job: Job, widths: Sequence[int], group_size: int | None) -> list[Grid]:
    sizes = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
    return [Grid(bits, size, job.recipe.symmetric) for bits in BITS for size in ([group_size] if group_size else sizes)]


@dataclass
class _Seen:
    """What the linears of a block were given, and the gradients by what they made of it, rows of all samples.

    first: the tensor itself that each was given first; it tells which of them read the same.
    """

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    first: dict[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def listening(self, linears: dict[str, nn.Linear]) -> Iterator[None]:
        hooks = [linear.register_forward_hook(self._hook(local)) for local, linear in linears.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, local: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(_, args: tuple, output: Tensor) -> None:
            given = args[0].detach()
            self.first.setdefault(local, given)

            def arrived(gradient: Tensor) -> None:
                self.add(local, given, gradient)

            if output.requires_grad:  # not of what positions alone are given to
                output.register_hook(arrived)

        return hook

    def add(self, local: str, given: Tensor, gradient: Tensor) -> None:
        self.inputs.setdefault(local, []).append(given.reshape(-1, given.shape[-1]).to(product_dtype()))
        self.gradients.setdefault(local, []).append(gradient.reshape(-1, gradient.shape[-1]).to(torch.bfloat16))

    def together(self, linears: list[str], scaled: Sequence[Sequence[str]]) -> list[list[str]]:
        """Those that read the same or are scaled together, and the experts of a layer.

        One search or one solver looks at them, and programs that fuse them ask for one grid.
        """
        groups: list[tuple[set[str], list[str]]] = []
        for local in linears:
            keys, names = self._keys(local), [local]
            keys |= {f"edge {index}" for index, layers in enumerate(scaled) if local in layers}
            for group in [group for group in groups if group[0] & keys]:
                groups.remove(group)
                keys, names = keys | group[0], group[1] + names
            groups.append((keys, names))
        return [names for _, names in groups]

    def _keys(self, local: str) -> set[str]:
        given = self.first.get(local)
        return {template(local)} | (set() if given is None or not len(given) else {f"input {given.data_ptr()}"})

    def cost(self, local: str, weight: Tensor, grid: Grid) -> float:
        """Nats, of all tokens together."""
        if local not in self.inputs:  # an expert that nothing was given to
            return 0.0
        error = rtn(weight, grid).dequantize().sub_(weight).to(product_dtype())
        moved = zip(self.inputs[local], self.gradients[local], strict=True)
        return sum(float(_squares(given @ error.t(), gradient)) for given, gradient in moved) / 2


def _squares(moved: Tensor, gradient: Tensor) -> Tensor:
    """The sum of (moved * gradient)^2."""
    return moved.float().mul_(gradient).square_().sum()
