"""What lies beside the decoder blocks, brought into memory for as long as the model itself is run."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from architectures.blocks import beside_blocks
from checkpoints.pretrained import PretrainedModel


@contextmanager
def around(source: PretrainedModel, units: tuple[str, ...]) -> Iterator[None]:
    """Inside the `with`, embeddings and norms hold their weights in float32; the decoder blocks need not.

    A model of transformers takes itself to be where its first parameter is, which may be on meta: it is told.
    """
    from transformers import PreTrainedModel

    names = beside_blocks(source.model, units)
    for name in names:
        source.materialize(name, torch.float32, recurse=False)
    try:
        with patch.object(PreTrainedModel, "device", torch.device("cpu")):
            yield
    finally:
        for name in names:
            source.release(name, recurse=False)
