"""Float models that are damaged, incomplete or no models at all: each is refused in one line that says why."""

import json
import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.models.tiny import WRAPPER, Row, save_tiny
from checkpoints.pretrained import open_pretrained
from qlinear.errors import ModelError
from tests.checkpoints.floats import assert_same_tensors, edit_json, refused, save, tiny_model


def change_weights(directory: Path, change) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


NORM = "model.norm.weight"
BAD_WEIGHTS = {
    f"the weights lack {NORM}": lambda w: w.pop(NORM),
    "the weights hold model.layers.7.extra, for which": lambda w: w.update({"model.layers.7.extra": torch.ones(1)}),
    f"{NORM} is [31] in the weights but [32] by the conf": lambda w: w.update({NORM: torch.ones(31)}),
    f"{NORM} holds NaN or infinite": lambda w: w[NORM].__setitem__(5, float("nan")),
    "up_proj.weight holds NaN or infinite": lambda w: w["model.layers.2.mlp.up_proj.weight"].fill_(float("-inf")),
    f"{NORM} is stored as torch.int8, not as floats": lambda w: w.update({NORM: torch.ones(32, dtype=torch.int8)}),
    f"norm.weight and {NORM} are both stored for {NORM}": lambda w: w.update({"norm.weight": torch.ones(32)}),
}


@pytest.mark.parametrize("message", BAD_WEIGHTS)
def test_bad_weights(message, saved):
    change_weights(saved, BAD_WEIGHTS[message])
    refused(saved, message)


def test_two_different_tensors_for_one_tied_weight(tmp_path):
    directory = save(tiny_model(tie_word_embeddings=True), tmp_path / "m")
    change_weights(directory, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    open_pretrained(str(directory))
    change_weights(directory, lambda w: w["lm_head.weight"].add_(1))
    refused(directory, "differ but the configuration ties them")


def test_a_tied_weight_that_is_no_number(tmp_path):
    """Both copies are the same, and neither equals itself."""
    directory = save(tiny_model(tie_word_embeddings=True), tmp_path / "m")
    change_weights(directory, lambda w: w["model.embed_tokens.weight"].__setitem__((1, 1), float("nan")))
    change_weights(directory, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    refused(directory, "embed_tokens.weight holds NaN or infinite weights")


@pytest.mark.parametrize(
    "odd",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to_sparse_csr(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: torch.nested.nested_tensor([tensor]),
    ],
    ids=["coo", "csr", "meta", "nested"],
)
@pytest.mark.filterwarnings("ignore:.*nested tensors|.*[Ss]parse")
def test_tensors_that_are_not_dense(odd, saved):
    weights = load_file(saved / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = odd(weights["model.layers.0.mlp.up_proj.weight"])
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    refused(saved, "save the model as safetensors")


@pytest.mark.parametrize("keep", [0, 4, 500, 20_000])
def test_truncated_safetensors(keep, saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, "model.safetensors is not a whole safetensors file")


def test_bad_indexes(tmp_path):
    directory = save(tiny_model(), tmp_path / "m", shard="40KB")
    index = directory / "model.safetensors.index.json"
    good = json.loads(index.read_text())["weight_map"]
    for file, message in {
        "../../x": "points to '../../x'; only plain file names",
        "/etc/passwd": "only plain file names",
        "..": "only plain file names",
        "gone.safetensors": "names gone.safetensors, which is not there",
        good["model.embed_tokens.weight"]: f"places {NORM} in",
    }.items():
        edit_json(index, weight_map=good | {NORM: file})
        refused(directory, message)
    edit_json(index, weight_map=[])
    refused(directory, "has no weight_map")
    edit_json(index, weight_map=good)
    save_file({NORM: torch.ones(32)}, directory / good["model.embed_tokens.weight"])
    refused(directory, f"{NORM} is stored twice")


@pytest.mark.parametrize("changes, message", [
    ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "not a causal language model"),
    ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "names T5ForConditionalGeneration"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "names LlamaForSequenceClassification"),
    ({"architectures": None, "model_type": "t5"}, "names no architecture"),
    ({"model_type": "no-such-type"}, "describes no model that can be opened"),
    ({"quantization_config": {"quant_method": "awq"}}, "is already quantized"),
    ({"num_hidden_layers": 10**9}, "names 1000000000 layers but the weights hold"),
    ({"hidden_size": "wide"}, "describes no model that can be opened"),
    ({"hidden_size": 64}, "by the configuration"),
    ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "read its *.py, and give `trust_remote_code`"),
    ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": []}, "describes no model that can be opened"),
])  # fmt: skip
def test_bad_configurations(changes, message, saved):
    edit_json(saved / "config.json", **changes)
    refused(saved, message)


@pytest.mark.parametrize("kind, without", [
    ("blip", "BlipForConditionalGeneration writes no text without pixel_values"),
    ("florence2", "Florence2ForConditionalGeneration writes no text without what its encoder reads"),
])  # fmt: skip
def test_what_writes_no_text_without_a_picture_is_not_quantized_first(kind, without, tmp_path):
    save_tiny(Row(kind, WRAPPER), tmp_path / "m")
    refused(tmp_path / "m", without)


def test_old_pytorch_checkpoints_are_read_as_tensors_only(saved, tmp_path):
    weights = tiny_model().state_dict()
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    assert_same_tensors(open_pretrained(str(saved)).load(), tiny_model())

    class Malice:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for write in (lambda: torch.save({"x": Malice()}, saved / "pytorch_model.bin"),
                  lambda: (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Malice()))):  # fmt: skip
        write()
        refused(saved, "pytorch_model.bin cannot be read as plain tensors")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_model(saved, tmp_path):
    (saved / "config.json").write_text("[" * 100_000)
    refused(saved, "config.json cannot be read")
    (saved / "config.json").unlink()
    refused(saved, "holds no config.json")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "neither a model directory nor a .gguf file")
    refused(tmp_path / "gone", "nor a directory or .gguf file here")
    refused("gone.gguf", "nor a directory or .gguf file here")
    refused("~no-such-user/x", "no model '~no-such-user/x'")
    refused("x" * 300, "File name too long")
    save(tiny_model(), tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    refused(tmp_path / "bare", "holds no weights (none of model.safetensors")


def test_an_unreachable_hub_fails_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.monotonic()
    refused("some-org/no-such-model", "neither the hub nor its local cache gave it")
    assert time.monotonic() - started < 5


def test_a_hub_model_in_the_local_cache_needs_no_network(monkeypatch, tmp_path):
    repository = tmp_path / "hub" / "models--some-org--Tiny"
    blobs = save(tiny_model(), repository / "blobs")
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():  # the cache links its files, which an index check must not mind
        (snapshot / blob.name).symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    opened = open_pretrained("some-org/Tiny")
    assert opened.name == "tiny"
    assert_same_tensors(opened.load(), tiny_model())


def test_missing_tokenizer(saved):
    with pytest.raises(ModelError, match="holds no tokenizer"):
        _ = open_pretrained(str(saved)).tokenizer
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer of tiny-llama cannot be opened"):
        _ = open_pretrained(str(saved)).tokenizer


def test_a_checkpoint_of_before_torch_1_6(saved):
    before = open_pretrained(str(saved), False).load().state_dict()
    (saved / "model.safetensors").unlink()
    torch.save(before, saved / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    found = open_pretrained(str(saved), False).load().state_dict()
    assert found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)


def test_a_section_that_is_null_is_none(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    assert open_pretrained(str(saved), False).load() is not None
