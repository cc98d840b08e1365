"""Checkpoints of models with mixtures of experts, run whole and on their modules."""

import pytest
import torch

import run_awq
from engine.fused import FusedDecoder
from qlinear.backends.cpu import native
from tests.quantized import quantized, save_float
from tests.tiny import MIXTURE_TYPES, VOCAB

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


@pytest.mark.parametrize("model_type", [*MIXTURE_TYPES, "granite"])
def test_a_checkpoint_runs_whole_as_on_its_modules(model_type, tmp_path):
    """Half of the tokens at least; some go to other experts where two are as good."""
    checkpoint = quantized(save_float(tmp_path / model_type, model_type), tmp_path / "w4")
    whole, apart = (run_awq.load(str(checkpoint), flash_attention=way) for way in (True, False))
    assert isinstance(whole.decoder(8), FusedDecoder)
    tokens = torch.randint(0, VOCAB, (60,), generator=torch.Generator().manual_seed(0))
    expected = apart.logits(tokens)
    far = (whole.logits(tokens) - expected).square().mean(1) / expected.square().mean(1)
    assert far.median().sqrt() < 0.04
