"""A dry run: what it says is what a run then makes, and it leaves nothing behind."""

import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig

from architectures.anatomy import by_shape
from architectures.experts import take_apart
from qlinear.errors import AwqError, ModelError
from qlinear.grid import Grid
from qlinear.progress import silent
from quantization import amounts, forecast
from quantization.amounts import Source, Text, sources
from quantization.gauge import Rates, judged_rows
from quantization.methods import METHODS
from quantization.shared import RANKS, shared
from run_awq import quantize
from tests.quantized import recipe, save_float
from tests.tiny import FFN, HIDDEN, LAYERS, VOCAB, known_of, tiny_model

RATES = Rates(1e-9, 2e-9, 0.0, 3e-9, 5e-9, 0.0, 0.0, 0.0, 0.0, 7e-9)


@pytest.fixture
def at_once(monkeypatch):
    """Nothing is measured."""
    monkeypatch.setattr(forecast, "measure", lambda *_: RATES)
    monkeypatch.setattr(forecast, "peak_rss_bytes", lambda: 10**8)


def told(source, **changes):
    return forecast.forecast(str(source), recipe(source, **changes), None, None, False, silent)


@pytest.mark.parametrize(
    ("model_type", "overrides", "changes"),
    [
        ("llama", {}, dict(awq="run", solver="gptq")),
        ("llama", {}, dict(w_bit=3, lm_head=True, lm_head_group_size=64)),
        ("qwen2", dict(tie_word_embeddings=True), dict(lm_head=True)),
        ("opt", {}, {}),
        ("qwen3_moe", {}, dict(symmetric=True)),
    ],
)
def test_the_bytes_are_those_of_the_checkpoint(tmp_path, at_once, model_type, overrides, changes):
    source = save_float(tmp_path / "m", model_type, **overrides)
    before = sorted(tmp_path.rglob("*"))
    said = told(source, **changes)
    assert sorted(tmp_path.rglob("*")) == before
    result = quantize(str(source), str(tmp_path / "q"), recipe(source, scales=None, **changes))
    stored = load_file(tmp_path / "q" / "model.safetensors")
    assert 0.97 * sum(tensor.nbytes for tensor in stored.values()) < said.bytes
    assert said.bytes <= sum(tensor.nbytes for tensor in stored.values())
    assert said.float_bytes == result.size.float_bytes and said.blocks == 2
    quantized = [layer for layer in said.layers if layer.reason is None]
    assert sum(layer.count for layer in quantized) == sum(name.endswith(".weight_packed") for name in stored)
    assert {(layer.name, layer.reason) for layer in said.layers} >= {(kept.name, kept.reason) for kept in result.kept}


def test_a_configuration_alone_says_the_same(tmp_path, at_once):
    source = save_float(tmp_path / "m", "llama")
    whole = told(source, awq="run", solver="gptq")
    bare = tmp_path / "bare" / "m"
    bare.mkdir(parents=True)
    shutil.copy(source / "config.json", bare)
    found = forecast.forecast(str(bare), recipe(source, awq="run", solver="gptq"), None, None, False, silent)
    assert not found.examined and whole.examined
    assert (found.layers, found.bytes, found.seconds, found.ranks) == (
        whole.layers,
        whole.bytes,
        whole.seconds,
        whole.ranks,
    )
    assert [path.name for path in bare.iterdir()] == ["config.json"]
    with pytest.raises(AwqError, match="holds no weights"):
        quantize(str(bare), str(tmp_path / "q"), recipe(source))


def test_a_configuration_that_would_be_built_for_ever(tmp_path):
    AutoConfig.for_model("llama", num_hidden_layers=10**9, architectures=["LlamaForCausalLM"]).save_pretrained(
        tmp_path / "deep"
    )
    with pytest.raises(ModelError, match="names 1000000000 layers, and 1000 are taken without weights"):
        told(tmp_path / "deep")


def test_what_is_measured_takes_no_time_to_speak_of(tmp_path):
    """For once with the measured rates; a tiny block is all overhead, so only that there is something is asked."""
    said = told(save_float(tmp_path / "m"), awq="run", solver="gptq")
    assert said.seconds > 0 and 0.3 <= said.error and all(seconds > 0 for seconds in said.parts.values())
    assert sum(said.parts.values()) == pytest.approx(said.seconds)
    assert said.ranks[0].seconds == pytest.approx(said.seconds) and said.ranks[0].received_bytes == 0


def test_distillation_takes_time_that_ranks_do_not_share_and_the_whole_model(tmp_path, at_once, monkeypatch):
    source = save_float(tmp_path / "m")
    plain, said = (told(source, awq="run", solver="gptq", distill=steps) for steps in (0, 10))
    linears = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * FFN  # half as many heads of k and v
    blocks = LAYERS * (2e-9 * linears + 1e-9 * 2 * 16 * HIDDEN)
    expected = 10 * 1024 * (4.2 * blocks + 3.1 * 2e-9 * VOCAB * HIDDEN)
    assert said.parts["distillation"] == pytest.approx(expected) and "distillation" not in plain.parts
    assert said.seconds == pytest.approx(plain.seconds + expected)
    last = [each.ranks[-1].seconds for each in (plain, said)]
    assert last[1] == pytest.approx(last[0] + expected)
    monkeypatch.setattr(forecast, "bytes_needed", lambda job: 10**15)
    assert told(source, distill=10).memory_bytes > 10**15 > told(source).memory_bytes


def test_what_the_linears_of_a_block_read():
    model = tiny_model("llama")
    block = model.model.layers[0]
    found = sources(block, known_of(model, block), model.config)
    assert [(source.shapes, source.ranked) for source in found] == [
        (((64, 64), (32, 64), (32, 64)), 1.0),
        (((64, 64),), 1.0),
        (((128, 64), (128, 64)), 1.0),
        (((64, 128),), 1.0),
    ]


def test_an_expert_reads_its_share_of_the_text():
    """What no table of edges tells of a mixture, names do."""
    model = tiny_model("qwen3_moe")
    take_apart(model)
    block = model.model.layers[0]
    found = sources(block, by_shape(block), model.config)
    experts = [source for source in found if source.share < 1]
    assert len(experts) == 2 * 8  # gate and up of each read one input, down another
    assert [len(source.shapes) for source in found] == [3, 1] + [2] * 8 + [1] * 8
    assert {source.share for source in experts} == {model.config.num_experts_per_tok / 8}


def test_seconds_are_counted_by_shapes():
    """2 x 10 tokens, one linear of 32 x 64: by hand."""
    text = Text(2, 10, looks=False, passes=2, gathered=True)

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    job = SimpleNamespace(
        recipe=SimpleNamespace(distill=0, mixed=False, method=METHODS["gptq"]), source=SimpleNamespace(config=config)
    )
    found = amounts.block_seconds([Source(((32, 64),), 0.5, 1.0)], text, job, RATES)
    assert found.forward == pytest.approx(20 * 2 * 0.5 * 32 * 64 * 1e-9)
    assert found.statistics == pytest.approx(20 * 0.5 * 64**2 * 3e-9)
    assert found.search == 0
    products = 0.5 + 2 * (1 + 0.5)  # compensated once, visited twice
    assert found.solve == pytest.approx((5e-9 * 64**3 + 7e-9 * 32 * 64 + products * 32 * 64**2 * 1e-9,))


def test_rows_that_a_search_looks_at():
    assert judged_rows(100, 64) == 20 * 100 + 5 * 100
    assert judged_rows(4096, 576) == 20 * 128 + 5 * 4096  # 4096 * 576**2 is below 2**33
    assert judged_rows(11008, 4096) == 20 * 128 + 5 * 512


def test_ranks_share_what_can_be_shared():
    inputs = [[Source(((64, 64),), 1.0, 1.0), Source(((64, 128),), 1.0, 1.0)]] * 3
    each = amounts.Seconds(64.0, 10.0, 40.0, (3.0, 5.0))
    text = Text(64, 16, looks=True, passes=2, gathered=True)
    alone, two, *_, sixteen = (
        shared(ranks, [each] * 3, inputs, text, lambda samples: 1000 * samples) for ranks in RANKS
    )
    assert alone.seconds == pytest.approx(3 * (64 + 10 + 40 + 8)) and alone.received_bytes == 0
    assert two.seconds == pytest.approx(3 * (32 + 5 + 20 + 5))
    assert sixteen.seconds == pytest.approx(3 * (4 + 10 / 16 + 40 / 6 + 5))  # one of six confirmed is a sixth
    message = 3 * 4 * max(16 * (64 + 128), 256 * 128)
    assert (alone.memory_bytes, two.memory_bytes) == (64_000, 32_000 + message)
    seen, grams, codes = 64 * 16 * (64 + 128) * 4, (64**2 + 128**2) / 2 * 4, 64 * 64 + 64 * 128
    assert two.received_bytes == pytest.approx(3 * (seen + grams + codes) / 2, abs=1)


def test_plain_rounding_reads_no_text(tmp_path, at_once):
    said = told(save_float(tmp_path / "m"), awq="none")
    assert said.ranks == [] and said.parts["forward passes"] == 0 and said.parts["codes"] > 0
    assert said.bytes == sum(layer.bytes for layer in said.layers)
    (down,) = [layer for layer in said.layers if layer.name.endswith("down_proj")]
    assert (down.count, down.shape, down.bits) == (2, (64, 128), Grid(4, 32).bits_per_weight)
