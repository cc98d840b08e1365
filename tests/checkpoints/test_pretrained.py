"""Opening float models: what comes back equals what was saved."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.models.tiny import Row
from benchmarks.models.tiny import tiny_model as model_of
from checkpoints.local import files_fingerprint
from checkpoints.pretrained import open_pretrained
from checkpoints.tokenizers import open_tokenizer
from qlinear.errors import ModelError
from tests.checkpoints.floats import TINY, assert_same_tensors, edit_json, save, tiny_model
from tests.checkpoints.pieces import byte_level

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "opt", "gpt_neox",
            "falcon", "bloom", "starcoder2")  # fmt: skip


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


@pytest.mark.parametrize("changed", range(3, 64, 12))
def test_a_fingerprint_is_of_every_tensor(saved, tmp_path, changed):
    """Of a file far larger than the even places that are looked at."""
    tensors = {f"t{i}": torch.full((64 * 256,), i, dtype=torch.float32) for i in range(64)}
    found = []
    for value in (1.0, 2.0):
        tensors[f"t{changed}"].fill_(value)
        save_file(tensors, saved / "model.safetensors")
        found.append(files_fingerprint(str(saved)))
    assert None not in found and found[0] != found[1]


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


def test_a_class_that_is_another_types_too(tmp_path):
    """InternLM3 is Llama's class with a configuration of its own."""
    directory = tmp_path / "m"
    whole = model_of(Row("internlm3"))
    whole.save_pretrained(directory)
    opened = open_pretrained(str(directory)).load(torch.float32)
    assert (type(opened).__name__, opened.config.model_type) == ("LlamaForCausalLM", "internlm3")
    assert all(torch.equal(tensor, opened.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("named", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_text_is_split_as_tokenizer_json_says(tmp_path, model_type, named):
    """Classes of transformers 5 have a way of their own, and may be taken by the model's type."""
    tokenizer = byte_level()
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    described = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"tokenizer_class": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    found = open_tokenizer(tmp_path, False)
    for text in ("a  20", "the\n    2, 20", "the thing"):
        assert found(text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"], text
    assert found.chat_template == tokenizer.chat_template and found.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_nothing_is_none(tmp_path, window):
    """To transformers, which fails, no token would see any; the fused decoder went by none."""
    directory = save(tiny_model("mistral", sliding_window=None), tmp_path / "m")
    tokens = torch.arange(3, 11)[None]
    expected = open_pretrained(str(directory)).load()(tokens).logits
    edit_json(directory / "config.json", sliding_window=window)
    assert torch.equal(open_pretrained(str(directory)).load()(tokens).logits, expected)


def test_layers_with_a_window_of_nothing_are_refused(tmp_path):
    directory = save(tiny_model("gemma2"), tmp_path / "m")
    edit_json(directory / "config.json", sliding_window=0)
    with pytest.raises(ModelError, match="has layers with a sliding window, and says 0 for how long it is"):
        open_pretrained(str(directory))


@pytest.mark.parametrize("named", [None, [], ["LLaMAForCausalLM"]])
def test_the_type_alone_says_how_to_open_a_model_of_no_known_class(tmp_path, named):
    """As transformers does: the field may be missing, and conversions of the first Llama spell it so."""
    model = tiny_model()
    directory = save(model, tmp_path / "m")
    edit_json(directory / "config.json", architectures=named)
    opened = open_pretrained(str(directory)).load()
    assert type(opened) is type(model)
    assert_same_tensors(opened, model)
