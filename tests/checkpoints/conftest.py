"""Float models on disk, and a checkpoint of one."""

from pathlib import Path

import pytest

from tests.checkpoints.floats import save, tiny_model
from tests.quantized import quantized, save_float


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    return save_float(tmp_path_factory.mktemp("model") / "float", "qwen2")


@pytest.fixture
def checkpoint(source, tmp_path) -> Path:
    return quantized(source, tmp_path / "q", lm_head=True, lm_head_group_size=64)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A float model of random weights without a tokenizer."""
    return save(tiny_model(), tmp_path / "Tiny Llama")
