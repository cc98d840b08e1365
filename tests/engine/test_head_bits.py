"""An output head of one byte a weight, below whole models."""

import numpy as np
import pytest
import torch
from torch import nn

from qlinear.backends.cpu import native
from qlinear.backends.widths import Widths
from qlinear.errors import OptionError, TargetError
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
from qlinear.backends.cpu.bytes import in_bytes  # noqa: E402
from run_awq import load  # noqa: E402

EIGHT = Widths(head=8)


def to_int8(weight):
    """Each 64 of a row rounded to integers of at most 127 times their scale, which is a bfloat16 number."""
    rows, columns = weight.shape
    groups = nn.functional.pad(weight.double(), (0, -columns % 64)).view(rows, -1, 64)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).bfloat16().double()
    return ((groups / scale).round().clamp(-127, 127) * scale).view(rows, -1)[:, :columns]


@pytest.mark.parametrize(("kind", "options"), [("llama", {}), ("gemma2", {}), ("qwen3", dict(hidden_size=160))])
def test_logits(isa, kind, options):
    """Those of a float model with such a head, as a prompt and token by token; its embedding is as it was."""
    tokens, backend = tokens_of(20), CpuBackend(widths=EIGHT)
    model, exact = quantized_on(backend, kind, head=False, **options)
    decoder, reason = fused_decoder(model, backend, 64, 32)
    assert decoder is not None, reason
    found, plain = read_all(decoder, tokens), read_all(fused_decoder(model, CpuBackend(), 64, 32)[0], tokens)
    assert torch.equal(stepped(decoder, tokens, 9), found[8:])

    head = to_int8(model.lm_head.weight)
    assert 1e-3 < distance(head, model.lm_head.weight.double()) < 0.01
    exact.lm_head.weight = nn.Parameter(head.float())
    wanted = float_logits(exact, tokens)
    assert distance(found, wanted) < 0.02
    assert (
        distance(found - plain, wanted - float_logits(quantized_on(backend, kind, head=False, **options)[1], tokens))
        < 0.3
    )


def test_decoders_share_it():
    """It is made once, and goes with the last decoder that reads it."""
    weight = np.random.default_rng(0).integers(0x3F00, 0x3F80, (50, 64)).astype(np.uint16)
    made = in_bytes(weight)
    again = in_bytes(weight)
    assert again is made and in_bytes(weight.copy()) is not made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    return quantized(save_float(folder / "llama"), folder / "made")


def test_every_way_to_open_it(checkpoint, monkeypatch):
    tokens = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(2))
    plain, exact = load(checkpoint, head_bits=8), load(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr("checkpoints.at_hand.open_at_hand", lambda directory: 1 / 0)
        long = load(checkpoint, head_bits=8)
    assert [type(model.runner) for model in (plain, long)] == [StackRunner, ModuleRunner]
    found = plain.logits(tokens)
    assert torch.equal(found, long.logits(tokens)) and not torch.equal(found, exact.logits(tokens))
    assert plain.about.code == long.about.code == f"cpu/{native.select_isa()} head8"
    both = load(checkpoint, head_bits=8, kv_bits=8, precision="w4aint8")
    assert both.about.code == f"cpu/{native.select_isa()} int8 kv8 head8"


def test_proposed_tokens_change_no_answer(checkpoint):
    drafted, plain = load(checkpoint, head_bits=8, draft="lookup"), load(checkpoint, head_bits=8)
    prompt = "w5 w9 w7 w5 w9 w7 w5 w9"
    answers = [list(model.stream(prompt, max_new_tokens=60)) for model in (drafted, plain)]
    assert answers[0] == answers[1]


def test_where_it_is_not_to_be_had(checkpoint, tmp_path):
    with pytest.raises(TargetError, match="^`head_bits=8` runs on `target=cpu` only, not on cuda; use 16$"):
        load(checkpoint, head_bits=8, target="cuda")
    with pytest.raises(OptionError, match="^`head_bits=4` is not one of 16, 8$"):
        load(checkpoint, head_bits=4)
    with pytest.raises(OptionError, match="^`head_bits=8` means nothing with `flash_attention=False`; leave one of"):
        load(checkpoint, head_bits=8, flash_attention=False)
    small = load(quantized(save_float(tmp_path / "llama"), tmp_path / "made", lm_head=True), head_bits=8)
    with pytest.raises(TargetError, match="^`head_bits=8`: the output head is quantized already; leave it out$"):
        small.logits([5, 6])
    model, _ = quantized_on(CpuBackend(widths=EIGHT), "llama", head=False)
    with pytest.raises(TargetError, match="^`head_bits=8` takes a model whose stack is run as a whole: .*; use 16$"):
        ModuleRunner(model, CpuBackend(widths=EIGHT), False).decoder(16, False, print)
