"""A look at the blocks of a tiny model, as quantizing takes one at those of a model on disk."""

import torch
from torch import Tensor, nn

from architectures.anatomy import Anatomy, by_shape
from architectures.blocks import find_blocks
from architectures.discover import examine
from architectures.experts import take_apart
from architectures.family import Edge
from quantization.examine import kinds
from scales.calls import record_calls
from scales.fold import Folder
from tests.tiny import tiny_tokens


def blocks_of(model) -> list[nn.Module]:
    return [model.get_submodule(name) for name in find_blocks(model)]


@torch.no_grad()
def look(model, index: int = 0, known: Anatomy | None = None) -> Anatomy:
    """What a look at one block shows. known: what is said of it beforehand, by its shape unless given."""
    blocks = blocks_of(model)
    (hidden,), calls = record_calls(model, blocks, tiny_tokens(1, 14))
    try:
        text = model.config.get_text_config()
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    except Exception:  # a config that says it otherwise, or differently for each layer
        head_dim = 0

    def run() -> Tensor:
        return calls[index](blocks[index], hidden.clone())

    return examine(blocks[index], run, known or by_shape(blocks[index]), Folder(model.config), head_dim)


def look_at_all(model) -> list[Anatomy]:
    """Of every block, those of one kind by the first of them."""
    same = kinds(model, find_blocks(model))
    seen = {index: look(model, index) for index in set(same.values())}
    return [seen[same[index]] for index in range(len(same))]


def apart(model):
    """The same model in place, its experts linears that hold their weights."""
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, origin in take_apart(model).items():
        owner, _, leaf = name.rpartition(".")
        value = origin.take(held[origin.tensor]).clone()
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    return model


def indices(edge: Edge, config) -> tuple[list[int] | None, list[int] | None]:
    """Rows and channels of an edge, each None where it takes all of them in order."""
    config = config.get_text_config()
    rows, channels = (of and of(config).tolist() for of in (edge.kind.rows, edge.kind.channels))
    return rows, None if channels == list(range(len(channels or ()))) else channels
