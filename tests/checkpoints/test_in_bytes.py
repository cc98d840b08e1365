"""Embeddings stored in 8 bits: the values, what the config says of them, and everything that opens the checkpoint."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from checkpoints.export import export
from checkpoints.formats.compressed_tensors import quantization_section
from checkpoints.formats.in_bytes import PARTS, described, from_bytes, group_size_for, taken_out, to_bytes
from checkpoints.quantized import check_quantized, open_quantized
from engine.at_hand import StackRunner
from engine.whole import ModuleRunner
from qlinear.backends.cpu import native
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import CheckpointError, GridError, OptionError
from qlinear.grid import Grid
from qlinear.progress import Step, silent
from quantization.forecast import forecast
from quantization.plan import Job, Plan
from quantization.shards import Misfit
from run_awq import Recipe, load, quantize
from tests.awq_cli.resume.test_same_bytes import contents
from tests.quantized import quantized, recipe, save_float
from tests.tiny import VOCAB, tiny_tokens

EMBEDDING = "model.embed_tokens"
BACKEND = ReferenceBackend("cpu/torch")


def bits_of(values: torch.Tensor):
    return values.bfloat16().view(torch.uint16).numpy()


def opened(directory):
    return open_quantized(directory, BACKEND).module


@pytest.mark.parametrize(("n", "k", "group_size"), [(1, 32, 32), (131, 96, 32), (300, 192, 64), (128, 256, 256)])
def test_values_are_off_by_half_a_step_and_the_roundings_to_bfloat16(n, k, group_size):
    values = torch.randn(n, k, generator=torch.Generator().manual_seed(n)) * torch.logspace(-30, 30, n)[:, None]
    values[n // 2, :group_size] = 0
    exact = values.bfloat16().double().view(n, -1, group_size)
    parts = to_bytes(bits_of(values), group_size)
    found = torch.from_numpy(from_bytes(parts["weight_packed"], parts["weight_scale"])).view(torch.bfloat16)
    step = exact.abs().amax(2, keepdim=True) / 127
    # the scale's own rounding moves the largest code by 127 * 2^-9 of a step, and what is beyond 127 is cut off there
    allowed = step * (0.5 + 127 * 2**-9) + exact.abs() * 2**-8
    assert ((found.double().view_as(exact) - exact).abs() <= allowed).all()
    assert parts["weight_shape"].tolist() == [n, k] and not found[n // 2, :group_size].any()


def test_kernels_and_numpy_make_the_same_bits(monkeypatch):
    values = torch.randn(300, 192, generator=torch.Generator().manual_seed(0)) * torch.logspace(-38, 30, 300)[:, None]
    for group_size in (32, 64):
        parts = to_bytes(bits_of(values), group_size)
        first = from_bytes(parts["weight_packed"], parts["weight_scale"])
        with monkeypatch.context() as patch:
            patch.setattr(native, "is_built", lambda: False)
            second = from_bytes(parts["weight_packed"], parts["weight_scale"])
        assert (first == second).all()


def test_codes_lie_as_compressed_tensors_has_them():
    row = torch.tensor([[127.0, -127, 0, 1] + [0] * 28])
    parts = to_bytes(bits_of(row), 32)
    word = int(parts["weight_packed"][0, 0]) & 0xFFFFFFFF
    assert [word >> 8 * place & 255 for place in range(4)] == [255, 1, 128, 129]


def test_what_the_config_says_is_taken_out_again():
    plain = quantization_section(Grid(4, 64), None, ["lm_head"])
    groups = plain["config_groups"] | {"group_1": described([EMBEDDING], 32)}
    assert taken_out(plain | {"config_groups": groups}) == (plain, {EMBEDDING: 32})
    assert taken_out(plain) == (plain, {}) and taken_out(None) == (None, {})
    by_class = plain | {"config_groups": plain["config_groups"] | {"group_1": described(["Linear"], 32)}}
    assert taken_out(by_class) == (by_class, {})  # another program's, of linears


def test_widths_without_a_group():
    assert [group_size_for(width) for width in (576, 96, 100)] == [64, 32, None]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_float(tmp_path_factory.mktemp("bytes") / "float", "llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def eight(model, tmp_path_factory):
    return quantized(model, tmp_path_factory.mktemp("bytes") / "w4", embedding_bits=8)


@pytest.mark.parametrize(
    ("kind", "options", "changes"),
    [
        ("llama", dict(tie_word_embeddings=False), {}),
        ("llama", dict(tie_word_embeddings=True), dict(lm_head=True)),
        ("gemma2", {}, dict(w_bit=3)),
        ("gemma3", {}, {}),
        ("opt", {}, {}),
        ("gpt_neox", {}, dict(symmetric=True)),
        ("bloom", {}, {}),
        ("qwen3_moe", {}, {}),
        ("llama", {}, dict(bits_per_weight=3.9, group_size=None)),
    ],
)
def test_only_the_embedding_changes(tmp_path, monkeypatch, kind, options, changes):
    monkeypatch.setattr("checkpoints.writer.SHARD_BYTES", 20_000)
    model = save_float(tmp_path / "float", kind, **options)
    plain = opened(quantized(model, tmp_path / "plain", **changes))
    checkpoint = quantized(model, tmp_path / "eight", embedding_bits=8, **changes)
    check_quantized(checkpoint)
    found = opened(checkpoint)
    before, after = (each.get_input_embeddings().weight for each in (plain, found))
    stored = torch.from_numpy(from_bytes(*list(to_bytes(bits_of(before), 64).values())[:2])).view(torch.bfloat16)
    assert torch.equal(after, stored) and not torch.equal(after, before)
    state = found.state_dict()
    for name, tensor in plain.state_dict(keep_vars=True).items():
        assert tensor is before or torch.equal(tensor, state[name])
    tied = plain.get_output_embeddings().weight is before if hasattr(plain.get_output_embeddings(), "weight") else False
    assert tied == (getattr(found.get_output_embeddings(), "weight", None) is after)


@pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
@pytest.mark.parametrize("tied", [False, True])
def test_opened_at_hand_it_has_the_same_bits(tmp_path, monkeypatch, tied):
    model = save_float(tmp_path / "float", "llama", tie_word_embeddings=tied)
    checkpoint = quantized(model, tmp_path / "eight", embedding_bits=8)
    tokens = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(2))
    quick = load(checkpoint)
    assert isinstance(quick.runner, StackRunner)
    monkeypatch.setattr("checkpoints.at_hand.open_at_hand", lambda directory: 1 / 0)
    long = load(checkpoint)
    assert isinstance(long.runner, ModuleRunner)
    assert torch.equal(quick.logits(tokens), long.logits(tokens))


def test_the_file_is_smaller_by_that_and_the_record_says_so(tmp_path, model, eight):
    plain = quantized(model, tmp_path / "plain")
    sizes = [sum(tensor.nbytes for tensor in load_file(at / "model.safetensors").values()) for at in (plain, eight)]
    hidden = 64
    assert sizes[0] - sizes[1] == VOCAB * (2 * hidden - hidden - 2 * hidden // 64) - 2 * 8  # less the shape
    record = json.loads((eight / "awq_recipe.json").read_text())
    assert record["size"]["quantized_bytes"] == sizes[1] and record["options"]["embedding_bits"] == 8
    card = (eight / "README.md").read_text()
    assert "| embedding | 8 bits |" in card and "vLLM" not in card and 'load("w4")' in card


def test_a_forecast_counts_it_so(model):
    found = forecast(str(model), recipe(model, embedding_bits=8), None, None, False, silent)
    (embedding,) = (layer for layer in found.layers if layer.name == EMBEDDING)
    assert (embedding.bits, embedding.bytes, embedding.reason) == (8.25, VOCAB * 66, None)
    assert found.shards == []
    found = forecast(str(model), recipe(model, embedding_bits=8), None, 2, False, silent)
    assert found.misfits[0] == Misfit("the embedding", "vLLM reads none of 8 bits", False)


@pytest.mark.parametrize("format", ["awq", "gptq", "compressed-tensors"])
def test_an_export_has_it_in_sixteen_bits(tmp_path, eight, format):
    export(eight, tmp_path / "out", format)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors[f"{EMBEDDING}.weight"].shape == (VOCAB, 64) and f"{EMBEDDING}.weight_packed" not in tensors
    with torch.no_grad():
        before, after = (opened(at)(tiny_tokens()).logits.float() for at in (eight, tmp_path / "out"))
    assert (after - before).abs().max() <= 0.02 * before.abs().max()
    assert "embedding" not in (tmp_path / "out" / "README.md").read_text().split("What it lost")[0].split("How")[1]


def test_scales_are_fitted_beside_the_float_embedding(tmp_path, model, monkeypatch):
    for name, value in (("TOKENS", 128), ("CHECK_STEPS", 2), ("RATE", 0.006)):
        monkeypatch.setattr(f"quantization.distill.{name}", value)
    tensors = []
    for bits in (16, 8):
        made = tmp_path / f"e{bits}"
        result = quantize(str(model), str(made), recipe(model, w_bit=3, distill=8, embedding_bits=bits))
        assert result.distilled.kept > 0
        tensors.append(load_file(made / "model.safetensors"))
    assert tensors[1].keys() - tensors[0].keys() == {f"{EMBEDDING}.{part}" for part in PARTS}
    assert all(torch.equal(tensors[1][name], tensors[0][name]) for name in tensors[0].keys() & tensors[1].keys())


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_run_that_is_stopped_comes_to_the_same_bytes(tmp_path, model, eight, monkeypatch, blocks):
    monkeypatch.setattr("checkpoints.journal.WORTH", 0)
    asked = recipe(model, embedding_bits=8)

    def stop(event) -> None:
        if event == Step("blocks", blocks, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(str(model), str(tmp_path / "w4"), asked, progress=stop)
    with pytest.raises(CheckpointError, match="`embedding_bits`"):
        quantize(str(model), str(tmp_path / "w4"), recipe(model), resume=True)
    quantize(str(model), str(tmp_path / "w4"), asked, resume=True)
    assert contents(tmp_path / "w4") == contents(eight)


WORDS, SCALES = f"{EMBEDDING}.weight_packed", f"{EMBEDDING}.weight_scale"
DAMAGES = {
    "a scale that is no number": lambda t: t[SCALES].view(-1)[3:4].fill_(float("nan")),
    "no scales": lambda t: t.pop(SCALES),
    "too few words": lambda t: t.update({WORDS: t[WORDS][:, :-1].clone()}),
    "too few rows": lambda t: t.update({name: t[name][:-1].clone() for name in (WORDS, SCALES)}),
    "one of 16 bits beside it": lambda t: t.update({f"{EMBEDDING}.weight": torch.zeros(VOCAB, 64).bfloat16()}),
    "words of 64 bits": lambda t: t.update({WORDS: t[WORDS].long()}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_refused_in_a_line(tmp_path, model, damage):
    checkpoint = quantized(model, tmp_path / "w4", embedding_bits=8)
    tensors = load_file(checkpoint / "model.safetensors")
    DAMAGES[damage](tensors)
    save_file(tensors, checkpoint / "model.safetensors")
    for way in (lambda: opened(checkpoint), lambda: load(checkpoint)):
        with pytest.raises(CheckpointError, match=EMBEDDING) as refusal:
            way()
        assert "\n" not in str(refusal.value)


def test_eight_bits_of_another_kind_are_refused_as_before(tmp_path, eight):
    path = eight / "config.json"
    config = json.loads(path.read_text())
    groups = config["quantization_config"]["config_groups"]
    for change in ({"symmetric": False}, {"group_size": 48}, {"type": "float"}):
        changed = groups["group_1"] | {"weights": groups["group_1"]["weights"] | change}
        section = config["quantization_config"] | {"config_groups": groups | {"group_1": changed}}
        copy = tmp_path / next(iter(change))
        copy.mkdir()
        (copy / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
        with pytest.raises(CheckpointError, match="8 bits; this program runs|type 'float'"):
            check_quantized(copy)


class HeadFirst(nn.Module):
    """A head before the embedding that it is tied to."""

    def __init__(self):
        super().__init__()
        self.head, self.words = nn.Linear(64, 8, bias=False), nn.Embedding(8, 64)
        self.head.weight = self.words.weight

    def get_input_embeddings(self):
        return self.words


@pytest.mark.parametrize(("lm_head", "name"), [(False, "head.weight"), (True, "words.weight")])
def test_it_is_stored_by_the_first_name_that_is_written(lm_head, name):
    asked = Recipe(embedding_bits=8, lm_head=lm_head)
    job = Job(SimpleNamespace(model=HeadFirst()), asked, Plan((), (), True, 64, "head"), silent)
    assert job.in_bytes == name and job.byte_group_size == 64


def test_what_has_no_place_for_it(tmp_path):
    with pytest.raises(OptionError, match="`embedding_bits=4` is not one of 16, 8"):
        Recipe(embedding_bits=4)
    narrow = save_float(tmp_path / "narrow", "opt", word_embed_proj_dim=40)
    with pytest.raises(GridError, match="`embedding_bits=8`: 32 does not divide the 40 columns; leave it out"):
        quantized(narrow, tmp_path / "w4", embedding_bits=8)
    assert not (tmp_path / "w4").exists()
