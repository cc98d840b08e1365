"""What is not written as GGUF: models that llama.cpp would run as others, taken places, full disks."""

import re
from pathlib import Path

import pytest

from checkpoints.export import rehearse
from checkpoints.gguf_export import export_gguf
from checkpoints.pretrained import open_pretrained
from qlinear.errors import AwqError
from tests.checkpoints.pieces import byte_level
from tests.checkpoints.test_gguf_export import GEMMA, LLAMA_3, checkpoint


def refused(made: Path, output: Path, message: str, **options) -> None:
    with pytest.raises(AwqError) as raised:
        export_gguf(made, output, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".m.gguf")]


YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64, attention_factor=1.0)


@pytest.mark.parametrize(("model_type", "overrides", "recipe", "message"), [
    ("granite", {}, {}, "granite models are not written as GGUF; known are gemma, gemma2, gemma3_text, llama, mistral"),
    ("gemma2", GEMMA, dict(lm_head=True), "llama.cpp's gemma2 does not read; quantize without `lm_head`"),
    ("gemma2", dict(GEMMA, query_pre_attn_scalar=32), {}, "has query_pre_attn_scalar 32, not 16, which"),
    ("gemma2", dict(GEMMA, layer_types=["full_attention"] * 2), {}, "has windows on other layers, which"),
    ("gemma2", dict(GEMMA, attn_logit_softcapping=None), {}, "its logits capped in another way"),
    ("llama", dict(hidden_act="gelu"), {}, "hidden_act 'gelu', not 'silu', which llama.cpp's llama does not compute"),
    ("qwen2", dict(rope_parameters=LLAMA_3), {}, "positions are scaled by llama3; of llama.cpp's qwen2"),
    ("llama", dict(rope_parameters=YARN), {}, "a yarn with a temperature or truncation that llama.cpp has not"),
    ("smollm3", dict(num_hidden_layers=4), {}, "has other layers that do not rotate, which llama.cpp's smollm3"),
    ("qwen3", dict(attention_bias=True), {}, "model.layers.0.self_attn.o_proj.bias, for which llama.cpp's"),
])  # fmt: skip
def test_what_llama_cpp_would_run_as_another_model_is_refused(model_type, overrides, recipe, message, tmp_path):
    output = tmp_path / "m.gguf"
    refused(checkpoint(tmp_path, model_type, recipe=recipe, **overrides), output, message)
    byte_level().save_pretrained(tmp_path / "float")
    with pytest.raises(AwqError, match=re.escape(message)):  # before it is quantized, too
        rehearse(open_pretrained(str(tmp_path / "float")), output, "gguf", False, lm_head="lm_head" in recipe)


def test_places_that_are_taken(tmp_path):
    made, output = checkpoint(tmp_path), tmp_path / "m.gguf"
    refused(made, tmp_path / "m.bin", "has to end in .gguf")
    output.write_bytes(b"mine")
    refused(made, output, "is there already and was not made by this program", overwrite=True)
    assert output.read_bytes() == b"mine"
    output.unlink()
    export_gguf(made, output)
    refused(made, output, "exists already; give `overwrite`")
    before = output.stat().st_ino
    export_gguf(made, output, overwrite=True)
    assert output.stat().st_ino != before and output.stat().st_mode & 0o777 == 0o666 & ~0o022


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    from collections import namedtuple

    made = checkpoint(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("checkpoints.place.shutil.disk_usage", lambda folder: usage(9, 8, 1000))
    refused(made, tmp_path / "m.gguf", "GB of disk and 1e-06 GB are free")
