"""Checkpoints that were edited, damaged, interrupted or are in the way."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import store
from checkpoints.writer import CheckpointWriter
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import AwqError, CheckpointError, ModelError
from tests.quantized import quantized, save_float

BACKEND = ReferenceBackend("cpu/torch")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save_float(tmp_path_factory.mktemp("model") / "float", "qwen2")


@pytest.fixture
def checkpoint(source, tmp_path) -> Path:
    return quantized(source, tmp_path / "q", lm_head=True, lm_head_group_size=64)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_refused(directory: Path, kind: type[AwqError], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        store.load(directory, BACKEND)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def edit_config(directory: Path, **changes) -> dict:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(config))
    return config


def edit_scheme(directory: Path, **changes) -> None:
    """Change what the config says of the weights of its first group."""
    section = edit_config(directory)["quantization_config"]
    section["config_groups"]["group_0"]["weights"] |= changes
    edit_config(directory, quantization_config=section)


def edit_tensors(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_bits=5), r"says 5 bits; this program runs \(3, 4\)"),
        (dict(num_bits=3), "mixes bit widths"),
        (dict(num_bits="4"), "says 4 bits"),
        (dict(num_bits=None), "says None bits"),
        (dict(group_size=1000000), r"says group size 1000000; it has to be in \(32, 64, 128, 256\)"),
        (dict(group_size=0), "says group size 0"),
        (dict(group_size=-1), "says group size -1"),
        (dict(group_size=[32]), "says group size"),
        (dict(group_size=128), r"scales \(64, 4\) do not make groups of \[64, 128\] over 128 inputs"),
        (dict(symmetric=True), "not asymmetric per group"),
        (dict(strategy="channel"), "not asymmetric per group"),
        (dict(actorder="group"), "permutes channels between groups"),
    ],
)
def test_an_edited_scheme(checkpoint, changes, message):
    edit_scheme(checkpoint, **changes)
    assert_refused(checkpoint, CheckpointError, message)


def test_all_groups_said_to_be_of_other_bits(checkpoint):
    section = edit_config(checkpoint)["quantization_config"]
    for group in section["config_groups"].values():
        group["weights"]["num_bits"] = 3
    edit_config(checkpoint, quantization_config=section)
    assert_refused(checkpoint, CheckpointError, r"weight_packed is \(\d+, 8\) on disk, \(\d+, 6\) by .* \(3 bits")


@pytest.mark.parametrize(
    "section",
    [None, 7, {}, {"format": "int-quantized"}, {"format": "pack-quantized"},
     {"format": "pack-quantized", "config_groups": {}}, {"format": "pack-quantized", "config_groups": []},
     {"format": "pack-quantized", "config_groups": {"a": 5}},
     {"format": "pack-quantized", "config_groups": {"a": {"weights": None}}}],
    ids=repr,
)  # fmt: skip
def test_a_config_without_a_scheme(checkpoint, section):
    edit_config(checkpoint, quantization_config=section)
    assert_refused(checkpoint, CheckpointError, "config.json has no (pack-quantized|config_groups)")


def test_quantized_activations(checkpoint):
    section = edit_config(checkpoint)["quantization_config"]
    section["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "int"}
    edit_config(checkpoint, quantization_config=section)
    assert_refused(checkpoint, CheckpointError, "quantizes activations too")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_hidden_layers=3, layer_types=None), "has no tensor model.layers.2"),
        (dict(num_hidden_layers=1, layer_types=None), "quantizes model.layers.1.* which the model .* does not have"),
        (dict(num_hidden_layers=10**4, layer_types=None), "names 10000 layers but the weights hold"),
        (dict(hidden_size=96), "do not make groups of|on disk"),
        (dict(vocab_size=10**6), r"lm_head.weight_packed is .* on disk, \(1000000, 8\) by the config"),
        (dict(model_type="llama"), "k_proj.bias is .* on disk, None by the config"),
        (dict(model_type="no_such_model"), "describes no model that can be opened"),
        (dict(hidden_act="no_such_function"), "describes no model that can be opened"),
    ],
)
def test_a_config_that_does_not_belong_to_the_weights(checkpoint, changes, message):
    edit_config(checkpoint, **changes)
    assert_refused(checkpoint, AwqError, message)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\x00\xff"])
def test_a_config_that_is_not_json(checkpoint, content):
    (checkpoint / "config.json").write_text(content, encoding="latin-1")
    assert_refused(checkpoint, CheckpointError, "config.json (cannot be read|is not a JSON object)")


def test_no_checkpoint_at_all(tmp_path):
    assert_refused(tmp_path / "absent", CheckpointError, "has no config.json; make one with --task quantize")


@pytest.mark.parametrize("target", ["../../x", "/etc/passwd", "..", "sub/model.safetensors", ""])
def test_an_index_that_points_elsewhere(checkpoint, target):
    names = list(load_file(checkpoint / "model.safetensors"))
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "x")
    index = {"weight_map": dict.fromkeys(names, target)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(checkpoint, ModelError, "only plain file names beside it are read")


LAYER = "model.layers.0.mlp.up_proj"


def cast(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def reshape(name, rows):
    return lambda tensors: tensors.update({name: tensors[name][:rows].contiguous()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_scale"), "scales None do not make groups"),
        (lambda t: t.pop(f"{LAYER}.weight_zero_point"), "weight_zero_point is None on disk"),
        (lambda t: t.pop("model.layers.0.self_attn.q_proj.bias"), r"q_proj.bias is None on disk, \(64,\)"),
        (lambda t: t.pop("model.norm.weight"), "has no tensor model.norm.weight"),
        (lambda t: t.update({f"{LAYER}.bias": torch.zeros(128)}), r"up_proj.bias is \(128,\) on disk, None by"),
        (reshape(f"{LAYER}.weight_packed", 100), r"weight_packed is \(100, 8\) on disk, \(128, 8\) by the config"),
        (reshape("model.norm.weight", 32), r"model.norm.weight is \(32,\) on disk, \(64,\) by the config"),
        (reshape("model.layers.0.self_attn.q_proj.bias", 1), r"q_proj.bias is \(1,\) on disk"),
        (cast(f"{LAYER}.weight_packed", torch.float32), "have to be int32, not torch.float32"),
        (lambda t: t[f"{LAYER}.weight_scale"].fill_(float("nan")), "weight_scale holds a value that is not finite"),
        (lambda t: t.update({"model.norm.weight_packed": torch.zeros(1)}), "quantizes model.norm, which"),
        (lambda t: [t.pop(name) for name in list(t) if name.endswith("_packed")], "holds no quantized layer"),
    ],
)
def test_tensors_that_do_not_fit_each_other(checkpoint, change, message):
    edit_tensors(checkpoint, change)
    assert_refused(checkpoint, CheckpointError, message)


def test_a_truncated_weights_file(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(checkpoint, ModelError, "not a whole safetensors file")


@pytest.mark.parametrize("content", [None, "", "[]", "nonsense"])
def test_a_missing_or_foreign_recipe_is_no_obstacle(checkpoint, content):
    recipe = checkpoint / "awq_recipe.json"
    recipe.unlink() if content is None else recipe.write_text(content)
    loaded = store.load(checkpoint, BACKEND)
    assert loaded.recipe == {} and loaded.flash_attention is False


def fail_after(monkeypatch, method: str, calls: int, error: BaseException) -> None:
    """Let the writer's method raise at its call number `calls`."""
    original, count = getattr(CheckpointWriter, method), iter(range(10**6))

    def failing(self, *args, **kwargs):
        if next(count) == calls:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CheckpointWriter, method, failing)


IN_THE_FIRST_BLOCK = [("add", 0), ("add", 20), ("_flush", 0), ("end_step", 0)]
LATER = [("add", 50), ("finish", 0), ("_name_shards", 0), ("_publish", 0)]
ERRORS = pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom")], ids=["interrupted", "failed"])


@ERRORS
@pytest.mark.parametrize(("method", "calls"), IN_THE_FIRST_BLOCK)
def test_what_is_not_begun_leaves_nothing(source, tmp_path, monkeypatch, method, calls, error):
    fail_after(monkeypatch, method, calls, error)
    with pytest.raises(type(error)):
        quantized(source, tmp_path / "out" / "q")
    assert list(tmp_path.iterdir()) == []


@ERRORS
@pytest.mark.parametrize(("method", "calls"), LATER)
def test_what_is_not_finished_is_hidden_and_can_be(source, checkpoint, tmp_path, monkeypatch, method, calls, error):
    chosen = dict(lm_head=True, lm_head_group_size=64)
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        fail_after(patch, method, calls, error)
        quantized(source, tmp_path / "out" / "q", **chosen)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".q.partial"]
    finished = quantized(source, tmp_path / "out" / "q", **chosen, resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["q"]
    found, expected = contents(finished), contents(checkpoint)
    assert found.pop("awq_recipe.json") != expected.pop("awq_recipe.json")  # other seconds
    assert found == expected


@ERRORS
@pytest.mark.parametrize(("method", "calls"), IN_THE_FIRST_BLOCK + LATER)
def test_an_overwriting_run_that_fails_leaves_what_was_there(source, tmp_path, monkeypatch, method, calls, error):
    directory = quantized(source, tmp_path / "out" / "q")
    before = contents(directory)
    fail_after(monkeypatch, method, calls, error)
    with pytest.raises(type(error)):
        quantized(source, directory, w_bit=3, overwrite=True)
    assert contents(directory) == before
    begun = (method, calls) in LATER
    assert sorted(path.name for path in directory.parent.iterdir()) == [".q.partial"] * begun + ["q"]


def test_an_interrupt_between_the_two_renames(source, tmp_path, monkeypatch):
    directory = quantized(source, tmp_path / "out" / "q")
    before, rename = contents(directory), Path.rename

    def interrupted(self, target):
        if Path(target) == directory and self.name == "checkpoint":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(source, directory, w_bit=3, overwrite=True)
    assert contents(directory) == before
    monkeypatch.undo()
    quantized(source, directory, w_bit=3, overwrite=True, resume=True)
    assert [path.name for path in directory.parent.iterdir()] == ["q"]
    assert store.load(directory, BACKEND).recipe["w_bit"] == 3


def test_what_is_there_stays_without_overwrite_and_goes_with_it(source, checkpoint):
    before = contents(checkpoint.parent)
    with pytest.raises(CheckpointError, match="exists already; give --overwrite to replace it, or another --output"):
        quantized(source, checkpoint, w_bit=3)
    assert contents(checkpoint.parent) == before
    quantized(source, checkpoint, w_bit=3, overwrite=True)
    assert store.load(checkpoint, BACKEND).recipe["w_bit"] == 3
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_leftovers_of_a_killed_run_are_in_nobodys_way(source, tmp_path):
    for name in (".q.partial", ".q.replaced"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "shard-0").write_text("torn")
    directory = quantized(source, tmp_path / "out" / "q")
    quantized(source, directory, overwrite=True)
    assert [path.name for path in directory.parent.iterdir()] == ["q"]
    assert not (directory / "shard-0").exists()


def test_overwrite_does_not_replace_what_is_no_checkpoint(source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis is there already and no checkpoint; give another --output"):
        quantized(source, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


def test_overwriting_the_directory_one_is_in(source, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    quantized(source, Path("."), w_bit=3, overwrite=True)
    assert store.load(checkpoint, BACKEND).recipe["w_bit"] == 3


def test_an_output_that_cannot_be_made(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*file"):
        quantized(source, tmp_path / "file" / "q")


def test_a_full_disk(source, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="cannot write .*No space left on device"):
        quantized(source, tmp_path / "out" / "q")
    assert list(tmp_path.iterdir()) == []
