"""A checkpoint opened without torch against the same one opened with `transformers`: bit for bit the same."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from architectures.registry import fused_families
from engine.at_hand import StackRunner
from engine.whole import ModuleRunner
from qlinear.backends.cpu import native
from run_awq import load
from tests.quantized import quantized, save_float
from tests.tiny import FOUND_OUT_VARIANTS, MIXTURE_TYPES, VARIANTS, VOCAB

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

FUSED = [(kind, options) for kind, options in VARIANTS + FOUND_OUT_VARIANTS if kind in fused_families()]
PROMPT, NEW = "w5 w17 w80 w23 w99", 20


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("at_hand")
    return quantized(save_float(folder / "llama"), folder / "w4")


def whole(directory, monkeypatch):
    """Opened the long way."""
    with monkeypatch.context() as patch:
        patch.setattr("checkpoints.at_hand.open_at_hand", lambda directory: 1 / 0)
        model = load(directory, flash_attention=True)
    assert isinstance(model.runner, ModuleRunner)
    return model


def again(directory):
    """Opened a second time: the first one, the long way, has found out whether the other way is the same."""
    load(directory)
    return load(directory)


def logits_of(model, length=40):
    return model.logits(torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(("kind", "options"), FUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_every_family_that_is_fused(kind, options, tmp_path, monkeypatch):
    changes = dict(w_bit=3, symmetric=True) if len(str(options)) % 2 else dict(lm_head=True, lm_head_group_size=32)
    directory = quantized(save_float(tmp_path / "float", kind, **options), tmp_path / "quantized", **changes)
    model = load(directory)
    assert isinstance(model.runner, StackRunner)
    long = whole(directory, monkeypatch)
    assert torch.equal(logits_of(model), logits_of(long))
    if not kind.startswith("qwen2"):  # whose words are none to the tokenizer that transformers makes of these
        how = dict(max_new_tokens=NEW, temperature=0.8, seed=3)
        assert model.generate([PROMPT], **how) == long.generate([PROMPT], **how)
    assert model.end_tokens == long.end_tokens and model.max_positions == long.max_positions
    assert model.vocabulary == long.vocabulary == model.runner.outputs == long.runner.outputs


@pytest.mark.parametrize("changes", [{}, dict(symmetric=True), dict(lm_head=True, group_size=64)])
def test_layers_of_several_bits(tmp_path, monkeypatch, changes):
    options = dict(bits_per_weight=4.0, group_size=None) | changes
    directory = quantized(save_float(tmp_path / "float"), tmp_path / "quantized", **options)
    groups = json.loads((directory / "config.json").read_text())["quantization_config"]["config_groups"].values()
    assert {group["weights"]["num_bits"] for group in groups} == {3, 4}
    model = load(directory)
    assert isinstance(model.runner, StackRunner)
    assert torch.equal(logits_of(model), logits_of(whole(directory, monkeypatch)))


def test_neither_torch_nor_transformers_is_loaded(llama):
    code = (
        f"import sys, run_awq; model = run_awq.load({str(llama)!r})\n"
        f"print(model.generate([{PROMPT!r}], max_new_tokens=4)[0])\n"
        "print(sorted({'torch', 'transformers', 'safetensors.torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer, loaded = done.stdout.splitlines()
    assert loaded == "[]" and answer == load(llama, flash_attention=False).generate([PROMPT], max_new_tokens=4)[0]


def test_torchs_number_of_threads_holds_where_torch_is_loaded(llama):
    """It did not: what is opened without torch had threads of its own, as many as there are processors."""
    code = (
        "import torch, run_awq; from qlinear.backends.cpu import native; torch.set_num_threads(3)\n"
        f"model = run_awq.load({str(llama)!r})\n"
        "print(type(model.runner).__name__, native.threads())\n"
        "native.set_threads(2)\n"
        "print(native.threads(), torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["StackRunner 3", "2 2"]


def test_on_modules_where_it_is_asked_for(llama):
    assert isinstance(load(llama, flash_attention=False).runner, ModuleRunner)


def copied(source, folder):
    return shutil.copytree(source, folder / "copy")


def change(directory, file, new=False, **fields):
    path = directory / file
    path.write_text(json.dumps(({} if new else json.loads(path.read_text())) | fields))


def change_weights(directory, **fields):
    section = json.loads((directory / "config.json").read_text())["quantization_config"]
    for group in section["config_groups"].values():
        group["weights"] |= fields
    change(directory, "config.json", quantization_config=section)


def with_tensor(directory, name, length):
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {name: torch.ones(length, dtype=torch.bfloat16)}, directory / "model.safetensors")


def drop(directory, file, name):
    path = directory / file
    fields = json.loads(path.read_text())
    del fields[name]
    path.write_text(json.dumps(fields))


# What is not plain, and opened the long way for it; of some, that says what is wrong.
NOT_PLAIN = {
    "a word that is another token": lambda at: change(at, "added_tokens.json", new=True, w9x=9),
    "a token that templates may name": lambda at: change(
        at, "tokenizer_config.json", extra_special_tokens={"image_token": "w3"}, chat_template="{{ image_token }}"
    ),
    "where answers end, in a file of its own": lambda at: (
        drop(at, "tokenizer_config.json", "eos_token"),
        change(at, "special_tokens_map.json", new=True, eos_token="w7"),
    ),
    "a rotation by its older name": lambda at: change(
        at, "config.json", rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    ),
    "a tensor that the config does not foresee": lambda at: with_tensor(at, "model.layers.0.self_attn.o_proj.bias", 64),
    "zero points of a symmetric grid": lambda at: change_weights(at, symmetric=True),
    "a special token of no vocabulary": lambda at: change(at, "tokenizer_config.json", sep_token="<sep>"),
    "what writing a text takes": lambda at: change(at, "generation_config.json", no_repeat_ngram_size=2),
    "a config that does not say": lambda at: drop(at, "config.json", "num_key_value_heads"),
    "a rotation nobody knows": lambda at: change(
        at, "config.json", rope_parameters={"rope_type": "proportional", "rope_theta": 1e4}
    ),
    "a config that says otherwise": lambda at: change(at, "config.json", num_key_value_heads=4),
    "biases of which there are none": lambda at: change(at, "config.json", attention_bias=True),
    "a head beside one of its own": lambda at: change(at, "config.json", tie_word_embeddings=True),
    "another family": lambda at: change(at, "config.json", model_type="opt"),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_not_plain_takes_the_long_way(kind, llama, tmp_path):
    directory = copied(llama, tmp_path)
    NOT_PLAIN[kind](directory)
    try:
        model = again(directory)
    except Exception as error:  # which says what is wrong
        assert type(error).__module__ == "qlinear.errors" and "\n" not in str(error)
    else:
        assert isinstance(model.runner, ModuleRunner)


def test_other_scales_than_finite_ones(llama, tmp_path):
    directory = copied(llama, tmp_path)
    tensors = load_file(directory / "model.safetensors")
    for name in ("model.layers.1.self_attn.o_proj.weight_scale", "model.norm.weight", "model.embed_tokens.weight"):
        damaged = tensors[name].clone()
        damaged.view(-1)[-1] = float("nan")
        save_file(tensors | {name: damaged}, directory / "model.safetensors")
        with pytest.raises(Exception, match=f"{name} holds a value that is not finite"):
            load(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_floats_of_other_widths_are_cast(dtype, llama, tmp_path, monkeypatch):
    directory = copied(llama, tmp_path)
    tensors = load_file(directory / "model.safetensors")
    floats = {name: t.to(dtype) for name, t in tensors.items() if t.is_floating_point()}
    save_file(tensors | floats, directory / "model.safetensors")
    model = again(directory)
    assert isinstance(model.runner, StackRunner)
    assert torch.equal(logits_of(model), logits_of(whole(directory, monkeypatch)))


def test_a_longer_text_than_its_table_is_good_for(tmp_path):
    """The stack serves the first, the modules the second."""
    rope = dict(rope_type="dynamic", factor=2.0)
    float_model = save_float(tmp_path / "float", "llama", max_position_embeddings=32, rope_parameters=rope)
    notes = []
    model = load(quantized(float_model, tmp_path / "quantized"), progress=notes.append)
    assert isinstance(model.runner, StackRunner) and model.decoder(32).max_tokens == 32 and not notes
    assert type(model.decoder(33)).__name__ == "ModuleDecoder"
    assert "dynamic rotation changes beyond 32 tokens" in notes[0].text


def test_a_penalty_is_that_of_transformers(llama, tmp_path, monkeypatch):
    directory = copied(llama, tmp_path)
    change(directory, "generation_config.json", repetition_penalty=1.7, do_sample=True, temperature=0.6)
    model, notes = again(directory), []
    long = whole(directory, monkeypatch)
    assert isinstance(model.runner, StackRunner) and model.rules.notes == long.rules.notes != ()
    text = np.array([5, 9, 5, 77, 100])
    logits = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32)
    found, expected = (one.rules.for_text(5, 9)(text, logits) for one in (model, long))
    assert np.array_equal(found, expected) and not np.array_equal(found, logits) and not notes
    assert model.generate([PROMPT], max_new_tokens=NEW) == long.generate([PROMPT], max_new_tokens=NEW)


def test_templates_are_not_run_where_nobody_chats(llama, tmp_path):
    directory = copied(llama, tmp_path)
    (directory / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    assert isinstance(again(directory).runner, StackRunner)


@pytest.mark.parametrize("added", [".cache", "notes.txt", "README.md", "imatrix.dat"])
def test_what_lies_beside_does_not_matter(added, llama, tmp_path):
    directory = copied(llama, tmp_path)
    (directory / added).mkdir() if added == ".cache" else (directory / added).write_text("x")
    assert isinstance(load(directory).runner, StackRunner)


@pytest.mark.parametrize("kind", MIXTURE_TYPES)
def test_mixtures_choose_the_same_experts(kind, tmp_path, monkeypatch):
    """Also by corrections of a router that bfloat16 would not tell apart."""
    source = save_float(tmp_path / "float", kind)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if "correction_bias" in name]:
        tensors[name] = 8 + torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(1)) / 50
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    directory = quantized(source, tmp_path / "quantized")
    assert torch.equal(logits_of(again(directory)), logits_of(whole(directory, monkeypatch)))


def test_the_module_is_opened_when_it_is_asked_for(llama):
    model = load(llama)
    assert model.module.config.model_type == "llama" and model.module is model.module
