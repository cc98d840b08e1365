"""A look at one decoder block of each kind, with its real weights and a few tokens, before hours are spent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from architectures.anatomy import Anatomy
from architectures.blocks import shared_blocks
from architectures.discover import examine, runnable
from checkpoints.pretrained import PretrainedModel
from qlinear.errors import AwqError, ModelError
from quantization.around import around
from quantization.texts.own import ordinary_tokens
from scales import fold
from scales.calls import Call, alike, record_calls


class BlocksError(ModelError):
    """A model whose blocks cannot be run one by one."""


class UnfitError(ModelError):
    """A model that cannot run on quantized layers at all."""


# Tokens read: enough for every channel to show itself, few enough for a hundred passes over a block.
N_TOKENS = 16


def kinds(model: nn.Module, units: tuple[str, ...]) -> dict[int, int]:
    """For each unit the first one that is made of the same modules and shapes."""
    first: dict[str, int] = {}
    same = {}
    for index, name in enumerate(units):
        block = model.get_submodule(name)
        classes = [(local, type(module).__name__) for local, module in block.named_modules()]
        shapes = [(local, tuple(held.shape)) for local, held in block.named_parameters()]
        same[index] = first.setdefault(repr((classes, shapes)), index)
    return same


def examined(
    source: PretrainedModel, units: tuple[str, ...], known: tuple[Anatomy, ...], edges: bool
) -> tuple[Anatomy, ...]:
    """What is true of each unit, by the first of its kind. edges: whether any are wanted.

    Raises `BlocksError` where the blocks cannot be run one by one, `ModelError` for damaged weights.
    """
    shared = shared_blocks(source.model, units)
    if shared is not None:
        raise BlocksError(f"the decoder blocks of {source.name} share weights ({' and '.join(shared)})")
    same = kinds(source.model, units)
    source.materialize(units[0], torch.float32)
    try:
        with around(source, units):
            hidden, calls = _call(source, units, known)
        seen: dict[int, Anatomy] = {}
        for index in sorted(set(same.values())):
            source.materialize(units[index], torch.float32)
            seen[index] = _examine(source, units[index], hidden, calls[index], known[index], edges)
            source.release(units[index])
    finally:
        source.release(units[0])
    return tuple(seen[same[index]] for index in range(len(units)))


def _call(source: PretrainedModel, units: tuple[str, ...], known: tuple[Anatomy, ...]) -> tuple[Tensor, list[Call]]:
    """The first block's input, and the calls of all, for a few ordinary tokens."""
    vocabulary = source.config.get_text_config().vocab_size
    ordinary = ordinary_tokens(source.tokenizer, vocabulary)
    generator = torch.Generator().manual_seed(0)
    tokens = ordinary[torch.randint(len(ordinary), (1, N_TOKENS), generator=generator)]
    blocks = [source.model.get_submodule(unit) for unit in units]
    _check_weights_are_not_read(source, units, known, tokens)
    with _told(source, units[0]):
        hidden, calls = record_calls(source.model, blocks, tokens)
        _, shifted = record_calls(source.model, blocks, tokens, shift=0.5)
        for call, other in zip(calls, shifted, strict=True):
            if not alike(call.args, other.args) or not alike(call.kwargs, other.kwargs):
                raise ModelError("the model gives its blocks more of what others made than hidden states")
    return hidden[0], calls


def _check_weights_are_not_read(
    source: PretrainedModel, units: tuple[str, ...], known: tuple[Anatomy, ...], tokens: Tensor
) -> None:
    """Raises `UnfitError` where the model, outside of its blocks, wants to see the weights of linears in them."""
    blocks = [source.model.get_submodule(unit) for unit in units]
    originals = [
        (block, name, block.get_submodule(name))
        for block, anatomy in zip(blocks[1:], known[1:], strict=True)
        for name in anatomy.linears
    ]
    for block, name, _ in originals:
        block.set_submodule(name, nn.Identity())
    try:
        record_calls(source.model, blocks, tokens)
    except AttributeError as error:
        if "weight" not in str(error):
            return  # what ails it, the next run tells
        raise UnfitError(f"{source.name} cannot be quantized: it reads its layers' weights itself ({error})") from error
    except Exception:  # what ails it, the next run tells
        return
    finally:
        for block, name, linear in originals:
            block.set_submodule(name, linear)


@contextmanager
def _told(source: PretrainedModel, unit: str) -> Iterator[None]:
    """Turn whatever a model's own code raises into one line."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, AwqError) else f"{type(error).__name__}: {error}"
        where = f"{unit}: {' '.join(reason.split())[:200]}"
        raise BlocksError(f"the decoder blocks of {source.name} cannot be run one by one ({where})") from error


def _examine(source: PretrainedModel, unit: str, hidden: Tensor, call: Call, known: Anatomy, edges: bool) -> Anatomy:
    block, config = source.model.get_submodule(unit), source.config

    def run() -> Tensor:
        return call(block, hidden.clone())

    with _told(source, unit), torch.no_grad():
        _check_repeats(run, call)
        if not edges:
            return runnable(block, run, known)
        return examine(block, run, known, fold.Folder(config), _head_dim(config))


def _check_repeats(run: Callable[[], Tensor], call: Call) -> None:
    """A block that keeps something from one run to the next would see other samples' values."""
    shared = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, dict | list)]
    held = [_contents(value) for value in shared]
    first = run()
    if [_contents(value) for value in shared] != held or not torch.allclose(run(), first, rtol=1e-4, atol=1e-5):
        raise ModelError("it keeps something of what it has read")


def _contents(value: dict | list) -> list:
    return [(key, id(part)) for key, part in (value.items() if isinstance(value, dict) else enumerate(value))]


def _head_dim(config) -> int:
    """0 where the config does not say, or says more than one."""
    text = config.get_text_config()
    try:
        found = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    except Exception:  # a config of another shape, or one that differs from layer to layer
        return 0
    return found if isinstance(found, int) else 0
