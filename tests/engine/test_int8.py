"""Models whose activations are rounded to int8, in all of their ways to be run."""

import pytest
import torch

from qlinear.backends.cpu import native
from qlinear.errors import TargetError
from tests.engine.fusing import distance, float_logits, quantized_on, stepped, tokens_of
from tests.quantized import quantized, save_float
from tests.reading import read_all
from tests.tiny import VOCAB

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from engine.at_hand import StackRunner  # noqa: E402
from engine.whole import ModuleRunner, fused_decoder  # noqa: E402
from qlinear.backends.cpu.backend import CpuBackend  # noqa: E402
from run_awq import load  # noqa: E402


@pytest.fixture(params=AVAILABLE)
def isa(request):
    native.select_isa(request.param)
    yield request.param
    native.select_isa("")


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_logits(isa, kind, bits, monkeypatch):
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    tokens = tokens_of(50)
    model, exact = quantized_on(CpuBackend(int8=True), kind, bits)
    decoder, reason = fused_decoder(model, CpuBackend(int8=True), 64, 32)
    assert decoder is not None, reason
    whole, expected = read_all(decoder, tokens), float_logits(exact, tokens)
    # a step of 1/127 of the largest shows, bfloat16 alone gives 0.012 at most, and a wrong operation is off by far more
    assert 0.015 < distance(whole, expected) < 0.06
    assert torch.equal(stepped(decoder, tokens, 9), whole[8:])


@pytest.fixture(scope="module", params=[4, 3])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return quantized(save_float(folder / "llama"), folder / "made", w_bit=request.param, lm_head=True)


def test_every_way_to_open_it(checkpoint, monkeypatch):
    """Without torch, with it, and on modules, which round elsewhere, as the exact ones do."""
    tokens = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(2))
    plain = load(checkpoint, precision="w4aint8")
    modules = load(checkpoint, precision="w4aint8", flash_attention=False)
    with monkeypatch.context() as patch:
        patch.setattr("checkpoints.at_hand.open_at_hand", lambda directory: 1 / 0)
        long = load(checkpoint, precision="w4aint8", flash_attention=True)
    assert [type(model.runner) for model in (plain, long, modules)] == [StackRunner, ModuleRunner, ModuleRunner]
    for model in (plain, long, modules):
        assert (model.about.precision, model.about.code) == ("w4aint8", f"cpu/{native.select_isa()} int8")
    exact = load(checkpoint)
    assert (exact.about.precision, exact.about.code) == ("w4abf16", f"cpu/{native.select_isa()}")
    found, on_modules = plain.logits(tokens), modules.logits(tokens)
    assert torch.equal(found, long.logits(tokens)) and not torch.equal(found, exact.logits(tokens))
    assert distance(found, on_modules) < 0.06
    assert 5e-3 < distance(found, exact.logits(tokens)) < 0.06
    # what the modules multiply is rounded too
    exact_modules = load(checkpoint, flash_attention=False).logits(tokens)
    assert 5e-3 < distance(on_modules, exact_modules) < 0.06


@pytest.mark.parametrize("target", ["aie", "aie_emu", "cuda"])
def test_other_targets_refuse_it(checkpoint, target):
    with pytest.raises(TargetError) as refused:
        load(checkpoint, precision="w4aint8", target=target)
    assert str(refused.value) == f"`precision=w4aint8` runs on `target=cpu` only, not on {target}; use w4abf16"


@pytest.mark.parametrize("flash_attention", [None, False])
def test_without_the_kernels_it_is_refused(checkpoint, monkeypatch, flash_attention):
    monkeypatch.setattr(native, "is_built", lambda: False)
    with pytest.raises(TargetError, match="^`precision=w4aint8`: the native kernels are not built"):
        load(checkpoint, precision="w4aint8", flash_attention=flash_attention)
