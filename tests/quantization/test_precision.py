"""Which library multiplies: by the processor, and only inside the `with`."""

import platform

import pytest
import torch

from quantization.precision import fast_float32

AMD = {"architecture": "x86_64", "cpu_name": "AMD EPYC 9B45", "amx_bf16": False}
INTEL = {"architecture": "x86_64", "cpu_name": "Intel Xeon", "amx_bf16": False}
ARM = {"architecture": "arm64"}


@pytest.mark.parametrize(
    ("processor", "onednn"), [(AMD, True), (INTEL, False), (INTEL | {"amx_bf16": True}, True), (ARM, True)]
)
def test_onednn_multiplies_where_it_is_the_faster(monkeypatch, processor, onednn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with pytest.raises(KeyError), fast_float32():
        assert (matmul.fp32_precision == "bf16") == onednn
        raise KeyError
    assert matmul.fp32_precision == before


def test_a_torch_that_cannot_tell_the_processor_is_given_onednn(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    with fast_float32():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


@pytest.mark.parametrize("processor", [INTEL, AMD])
def test_products_of_either_library_are_float32_without_matrix_tiles(monkeypatch, processor):
    if getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16") or platform.machine() != "x86_64":
        pytest.skip("this processor may take products of bfloat16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    a, b = (torch.randn(65, 129, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    with fast_float32():
        found = a @ b.t()
    torch.testing.assert_close(found.double(), a.double() @ b.double().t(), rtol=1e-5, atol=1e-4)
