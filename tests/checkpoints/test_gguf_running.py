"""`.gguf` files that run as they are: the same weights on the kernels as their blocks stand for."""

import copy
from pathlib import Path

import gguf
import pytest
import torch

from checkpoints.gguf_export import export_gguf
from checkpoints.pretrained import open_pretrained
from qlinear.errors import CheckpointError
from qlinear.replace import quantized_layers
from run_awq import load
from tests.checkpoints import ggufs
from tests.checkpoints.pieces import byte_level
from tests.checkpoints.test_gguf_export import checkpoint
from tests.tiny import tiny_model, tiny_tokens

Q4_0, Q4_1 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1


def written_by_others(path: Path, model_type: str, kinds, **overrides) -> Path:
    """An exported file whose linears are put into blocks again by the gguf package. kinds: of a stored name."""
    made = checkpoint(path.parent, model_type, **overrides)
    base = export_gguf(made, path.with_name("base.gguf"), floats="f16").path
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = field.contents()
        kind, *inner = field.types
        writer.add_key_value(name, value, kind, sub_type=inner[-1] if inner else None)
    generator = torch.Generator().manual_seed(5)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if (kind := kinds(tensor.name)) is None:
            writer.add_tensor(tensor.name, copy.deepcopy(tensor.data), raw_dtype=tensor.tensor_type)
        else:
            noise = torch.randn(values.shape, generator=generator).numpy() * values.std() * 0.1
            writer.add_tensor(tensor.name, gguf.quantize(values + noise.astype("float32"), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks_of(kind):
    return lambda name: kind if name.startswith("blk.") and "norm" not in name and name.endswith(".weight") else None


def logits_agree(model, float_model, tolerance: float) -> None:
    ids = tiny_tokens()
    with torch.no_grad():
        found, expected = model(ids).logits.float(), float_model(ids).logits
    assert (found - expected).norm() <= tolerance * expected.norm()
    assert found.isfinite().all()


@pytest.mark.parametrize("flash_attention", [False, True])
@pytest.mark.parametrize(("model_type", "overrides"), [
    ("llama", dict(attention_bias=True)), ("qwen2", dict(tie_word_embeddings=True)), ("qwen3", {}),
    ("gemma3_text", dict(num_hidden_layers=7, tie_word_embeddings=True)), ("gemma", dict(tie_word_embeddings=True)),
    ("gemma2", dict(tie_word_embeddings=True)), ("phi3", dict(sliding_window=None)),
    ("smollm3", dict(num_hidden_layers=4, no_rope_layer_interval=4)), ("mistral", dict(sliding_window=None)),
])  # fmt: skip
def test_q4_0_of_another_program(model_type, overrides, flash_attention, tmp_path):
    path = written_by_others(tmp_path / "m.gguf", model_type, blocks_of(Q4_0), **overrides)
    model = load(path, flash_attention=flash_attention)
    linears = 4 if flash_attention or model_type == "phi3" else 7
    assert len(quantized_layers(model.module)) == linears * model.module.config.num_hidden_layers
    assert model.about.notes[0].startswith("scales of the file, half precision, rounded to the bfloat16")
    assert model.about.name == "m.gguf" and model.about.model_bytes == path.stat().st_size
    assert model.tokenizer("the thing").input_ids == byte_level()("the thing").input_ids
    logits_agree(model.module, open_pretrained(str(path)).load(torch.float32), 0.02)


@pytest.mark.parametrize("recipe", [dict(w_bit=4), dict(w_bit=3, group_size=64), dict(w_bit=4, lm_head=True)])
def test_what_was_exported_runs_again_without_a_loss(recipe, tmp_path):
    """The same codes, scales and zero points as before: the same logits, to the last bit."""
    made = checkpoint(tmp_path, recipe=recipe)
    path = export_gguf(made, tmp_path / "m.gguf", floats="bf16").path
    first, again = load(made), load(path)
    assert again.about.notes == ()
    sizes = {layer.group_size for layer in quantized_layers(again.module).values()}
    assert recipe.get("group_size", 32) in sizes
    ids = tiny_tokens()
    with torch.no_grad():
        difference = (first.module(ids).logits - again.module(ids).logits).abs().max()
    assert difference == 0 if recipe["w_bit"] == 4 else difference < 0.05  # three bits run on another kernel


@pytest.mark.parametrize(("kinds", "message"), [
    (blocks_of(gguf.GGMLQuantizationType.Q8_0), "holds linears as Q8_0; what runs as it is are Q4_0 and Q4_1"),
    (blocks_of(Q4_1), "minima that are no whole multiples of their scales"),
    (lambda name: Q4_0 if "ffn" in name and "norm" not in name else None, None),
    (lambda name: gguf.GGMLQuantizationType.F32 if "attn_q.weight" in name else None, None),
])  # fmt: skip
def test_blocks_that_do_not_run_as_they_are(kinds, message, tmp_path):
    path = written_by_others(tmp_path / "m.gguf", "llama", kinds)
    if message is None:
        logits_agree(load(path).module, open_pretrained(str(path)).load(torch.float32), 0.02)
        return
    with pytest.raises(CheckpointError) as raised:
        load(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_without_quantized_linears(tmp_path):
    path = ggufs.write_gguf(tmp_path / "m.gguf", ggufs.tiny_model("qwen2"))
    with pytest.raises(
        CheckpointError, match=r"holds linears as F32; what runs as it is are Q4_0 and Q4_1; quantize it"
    ):
        load(path)


def test_norms_of_gemma_are_stored_with_one_added(tmp_path):
    made = checkpoint(tmp_path, "gemma3_text", num_hidden_layers=7, tie_word_embeddings=True)
    path = export_gguf(made, tmp_path / "m.gguf").path
    expected = tiny_model("gemma3_text", num_hidden_layers=7, tie_word_embeddings=True).to(torch.bfloat16)
    opened = open_pretrained(str(path))
    assert torch.equal(opened.load().model.norm.weight, expected.model.norm.weight)
