"""Opening float models: what comes back equals what was saved, and what is wrong is said in one line."""

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.pretrained import open_pretrained
from qlinear.errors import ModelError

TINY = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "opt", "gpt_neox",
            "falcon", "bloom", "starcoder2")  # fmt: skip


def tiny_model(family="llama", dtype=torch.bfloat16, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY | changes)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def save(model, directory: Path, shard="5GB") -> Path:
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


@pytest.fixture
def saved(tmp_path):
    return save(tiny_model(), tmp_path / "Tiny Llama")


def assert_same_tensors(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def blocks(model):
    """Names of the decoder blocks and then of the whole: what a block-by-block user asks for."""
    stack = max((name for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    return [f"{stack}.{index}" for index in range(len(model.get_submodule(stack)))] + [""]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_block_by_block(family, tmp_path):
    model = tiny_model(family)
    opened = open_pretrained(str(save(model, tmp_path / "m", shard="20KB")))
    assert len(opened._source.files) > 1
    assert all(parameter.is_meta for parameter in opened.model.parameters())
    assert not opened.model.training and opened.dtype == torch.bfloat16
    for module in blocks(opened.model):
        opened.materialize(module)
        assert not any(parameter.is_meta for parameter in opened.model.get_submodule(module).parameters())
    assert_same_tensors(opened.model, model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    for (name, found), (_, expected) in zip(opened.model.named_buffers(), again.named_buffers(), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected), name
    ids = torch.arange(3, 11)[None]
    assert torch.equal(opened.model(ids).logits, again(ids).logits)
    assert opened.float_bytes == 2 * sum(parameter.numel() for parameter in model.parameters())


def test_released_modules_are_on_meta_and_read_again(saved):
    opened = open_pretrained(str(saved))
    opened.load()
    opened.model.model.layers[1].mlp.up_proj.weight.data.zero_()
    opened.release("model.layers.1")
    assert all(parameter.is_meta for parameter in opened.model.model.layers[1].parameters())
    assert not any(parameter.is_meta for parameter in opened.model.model.layers[0].parameters())
    assert_same_tensors(opened.load(), tiny_model())


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied_and_untied_ones_apart(tied, tmp_path):
    model = tiny_model(tie_word_embeddings=tied)
    opened = open_pretrained(str(save(model, tmp_path / "m")))
    opened.materialize("lm_head")
    assert (opened.model.lm_head.weight is opened.model.model.embed_tokens.weight) == tied
    assert opened.model.model.embed_tokens.weight.is_meta != tied
    opened.release("lm_head")
    assert opened.model.model.embed_tokens.weight.is_meta
    assert_same_tensors(opened.load(), model)
    assert opened.float_bytes == 2 * sum(parameter.numel() for parameter in model.parameters())


def test_dtypes(tmp_path):
    model = tiny_model(dtype=torch.float32)
    opened = open_pretrained(str(save(model, tmp_path / "m")))
    assert opened.dtype == torch.bfloat16
    assert_same_tensors(opened.load(torch.float32), model)
    opened.release()
    assert_same_tensors(opened.load(), tiny_model(dtype=torch.float32).bfloat16())
    assert open_pretrained(str(save(tiny_model(dtype=torch.float16), tmp_path / "half"))).dtype == torch.float16


def test_names_that_differ_from_the_modules(tmp_path):
    """A bloom checkpoint without its `transformer.` prefix, as published ones are, and leftovers of old Llamas."""
    bloom = save(tiny_model("bloom"), tmp_path / "bloom")
    weights = load_file(bloom / "model.safetensors")
    save_file({name.removeprefix("transformer."): w for name, w in weights.items()}, bloom / "model.safetensors")
    assert_same_tensors(open_pretrained(str(bloom)).load(), tiny_model("bloom"))
    llama = save(tiny_model(), tmp_path / "llama")
    weights = load_file(llama / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, llama / "model.safetensors")
    assert_same_tensors(open_pretrained(str(llama)).load(), tiny_model())


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


def test_name_fingerprint_and_generation_config(saved, tmp_path):
    opened = open_pretrained(str(saved))
    assert opened.name == "tiny-llama"
    assert opened.generation_config.eos_token_id == 2
    copy = shutil.copytree(saved, tmp_path / "b")
    assert open_pretrained(str(copy)).fingerprint == opened.fingerprint
    edit_json(copy / "generation_config.json", eos_token_id=[2, 7])
    assert open_pretrained(str(copy)).generation_config.eos_token_id == [2, 7]
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors")
    assert open_pretrained(str(copy)).fingerprint != opened.fingerprint


def refused(name, message: str) -> None:
    with pytest.raises(ModelError) as raised:
        open_pretrained(str(name)).load()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


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
    ({"architectures": None}, "names no architecture"),
    ({"model_type": "no-such-type"}, "describes no model that can be opened"),
    ({"quantization_config": {"quant_method": "awq"}}, "is already quantized"),
    ({"num_hidden_layers": 10**9}, "names 1000000000 layers but the weights hold"),
    ({"hidden_size": "wide"}, "describes no model that can be opened"),
    ({"hidden_size": 64}, "by the configuration"),
    ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "describes no model that can be opened"),
])  # fmt: skip
def test_bad_configurations(changes, message, saved):
    edit_json(saved / "config.json", **changes)
    refused(saved, message)


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


def test_a_model_of_merged_experts_is_refused(tmp_path):
    refused(save(tiny_model("mixtral"), tmp_path / "m"), "cannot be opened block by block")


def test_missing_tokenizer(saved):
    with pytest.raises(ModelError, match="holds no tokenizer"):
        _ = open_pretrained(str(saved)).tokenizer
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer of tiny-llama cannot be opened"):
        _ = open_pretrained(str(saved)).tokenizer


def test_memory_stays_within_a_few_blocks(tmp_path):
    """576 MB in 12 shards: one block at a time stays small, everything at once does not."""
    sizes = dict(hidden_size=1024, intermediate_size=7168, num_hidden_layers=12)
    config = AutoConfig.for_model("llama", **TINY | sizes)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()}
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    values = torch.randn(1024 * 7168).bfloat16()
    file_of = {name: f"{name.split('.')[2] if 'layers' in name else 0}.safetensors" for name in shapes}
    for file in set(file_of.values()):
        held = {k: values[: shape.numel()].view(shape).clone() for k, shape in shapes.items() if file_of[k] == file}
        save_file(held, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    script = """
        import re, sys
        from checkpoints.pretrained import open_pretrained
        def mb(field):
            return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
        opened = open_pretrained(sys.argv[1])
        start = mb("VmRSS")
        for _ in range(2):
            for index in range(12):
                opened.materialize(f"model.layers.{index}")
                opened.release(f"model.layers.{index}")
        print(mb("VmHWM") - start, mb("VmRSS") - start, opened.float_bytes >> 20)
        opened.load()
        print(mb("VmHWM") - start)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    peak, after, size, everything = map(int, result.stdout.split())
    assert size > 570 and everything > size
    assert peak < 150 and after < 20
