"""Quantizing in a process that has set torch up for work of its own, or quantizes something else meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from tests.quantized import quantized, save_float


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_float(tmp_path_factory.mktemp("models") / "tiny")


def weights(folder) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


RECIPES = {
    "gptq": {"awq": "run", "solver": "gptq"},
    "mixed": {"awq": "none", "bits_per_weight": 4.1},
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_caller_has_set_changes_nothing(model, tmp_path, name):
    plain = weights(quantized(model, tmp_path / "plain", **RECIPES[name]))
    states = {
        "bfloat16": default_dtype(torch.bfloat16),
        "float64": default_dtype(torch.float64),
        "inference": torch.inference_mode(),
        "gradless": torch.no_grad(),
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
        "elsewhere": torch.device("meta"),
    }
    for state, entered in states.items():
        with entered:
            assert weights(quantized(model, tmp_path / state, **RECIPES[name])) == plain, state


def test_two_threads_at_once(model, tmp_path):
    plain = weights(quantized(model, tmp_path / "plain", **RECIPES["gptq"]))
    with ThreadPoolExecutor(2) as threads:
        made = [threads.submit(quantized, model, tmp_path / str(number), **RECIPES["gptq"]) for number in range(4)]
        assert [weights(one.result()) == plain for one in made] == [True] * 4
    assert torch.get_default_dtype() == torch.float32
