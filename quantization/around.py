"""What lies beside the decoder blocks, brought into memory for as long as the model itself is run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from architectures.blocks import beside_blocks
from checkpoints.pretrained import PretrainedModel


@contextmanager
def around(source: PretrainedModel, units: tuple[str, ...]) -> Iterator[None]:
    """Inside the `with`, embeddings and norms hold their weights in float32; the decoder blocks need not."""
    names = beside_blocks(source.model, units)
    for name in names:
        source.materialize(name, torch.float32, recurse=False)
    try:
        yield
    finally:
        for name in names:
            source.release(name, recurse=False)
