"""What reads files, each with a good file and the damage that is done to it."""

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.fuzz.mutate import ODD, damaged_bytes, damaged_json, damaged_recipe, damaged_safetensors, damaged_value

Damage = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """file: what is damaged, within the reader's folder; read: opens what lies in the folder, and runs it if it can."""

    name: str
    file: str
    make: Callable[[Path], None]
    damage: Damage
    read: Callable[[Path], None]

    def damaged(self, folder: Path, good: Path, seed: int) -> bytes:
        """Put the folder back as it was made, but for the damage of that seed, which is returned."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        data = self.damage(random.Random(f"{self.name} {seed}"), (folder / self.file).read_bytes())
        (folder / self.file).write_bytes(data)
        return data


# ---- good files


def _float_model(folder: Path, shard: str = "5GB", **changes) -> None:
    from tests.quantized import word_tokenizer
    from tests.tiny import tiny_model

    sizes = dict(num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=128)
    tiny_model("llama", **sizes | changes).to(torch.bfloat16).save_pretrained(folder / "m", max_shard_size=shard)
    word_tokenizer().save_pretrained(folder / "m")
    (folder / "m.txt").write_text(" ".join(f"w{3 + number * 7 % 120}" for number in range(200)))


def _sharded(folder: Path) -> None:
    _float_model(folder, "10KB")


def _gguf(folder: Path) -> None:
    from tests.checkpoints.floats import tiny_model
    from tests.checkpoints.ggufs import write_gguf

    folder.mkdir(parents=True)
    write_gguf(folder / "m.gguf", tiny_model("qwen2", num_hidden_layers=1))


def _checkpoint(folder: Path) -> None:
    from tests.quantized import quantized

    _float_model(folder)
    quantized(folder / "m", folder / "q")


def _scales(folder: Path) -> None:
    from run_awq import quantize
    from tests.quantized import recipe

    _float_model(folder)
    quantize(str(folder / "m"), str(folder / "q"), recipe(folder / "m", awq="run", scales=str(folder / "s.pt")))


def _progress(folder: Path) -> None:
    """A run that was stopped after its last block."""
    from unittest import mock

    from quantization.work import Work
    from run_awq import quantize
    from tests.quantized import recipe

    _float_model(folder)
    wanted = recipe(folder / "m", awq="run", solver="gptq", scales=str(folder / "s.pt"))
    with mock.patch.object(Work, "write_rest", side_effect=KeyboardInterrupt):
        try:
            quantize(str(folder / "m"), str(folder / "q"), wanted)
        except KeyboardInterrupt:
            pass


# ---- reading


def _read_float(folder: Path) -> None:
    from checkpoints.pretrained import open_pretrained

    found = sorted(folder.glob("m*"))[0]
    open_pretrained(str(found)).load()


def _read_tokenizer(folder: Path) -> None:
    from checkpoints.pretrained import open_pretrained
    from engine.text import encode

    encode(open_pretrained(str(folder / "m")).tokenizer, "w3 w4")


def _run_checkpoint(folder: Path) -> None:
    from run_awq import load

    next(load(folder / "q").stream("w3 w4", max_new_tokens=2), None)


def _load_scales(folder: Path) -> None:
    from run_awq import quantize
    from tests.quantized import recipe

    shutil.rmtree(folder / "q")
    quantize(str(folder / "m"), str(folder / "q"), recipe(folder / "m", awq="load", scales=str(folder / "s.pt")))


def _replace_checkpoint(folder: Path) -> None:
    from awq_cli.finding import Origin
    from tests.quantized import quantized

    Origin.read(folder / "q").is_other(str(folder / "m"), "0" * 64)
    quantized(folder / "m", folder / "q", overwrite=True)


def _resume(folder: Path) -> None:
    """Refused or gone on with; refused, nothing of the progress is lost."""
    from qlinear.errors import AwqError
    from run_awq import quantize
    from tests.quantized import recipe

    before = {path.name: path.read_bytes() for path in (folder / ".q.partial").iterdir()}
    wanted = recipe(folder / "m", awq="run", solver="gptq", scales=str(folder / "s.pt"))
    try:
        quantize(str(folder / "m"), str(folder / "q"), wanted, resume=True)
    except AwqError:
        assert {path.name: path.read_bytes() for path in (folder / ".q.partial").iterdir()} == before, (
            "progress is lost"
        )
        raise
    expected = (folder / ".expected").read_bytes() if (folder / ".expected").exists() else None
    made = (folder / "q" / "model.safetensors").read_bytes()
    assert expected in (None, made), "another checkpoint than without the damage"


# ---- damage


def _damaged_gguf(rng: random.Random, data: bytes) -> bytes:
    return damaged_bytes(rng, data, within=rng.choice((24, 1000, 4000, len(data))))


def _damaged_journal(rng: random.Random, data: bytes) -> bytes:
    """Sealed again half of the time, as if this program had written it."""
    from checkpoints.journal import sealed

    if rng.random() < 0.5:
        return damaged_json(rng, data)
    said = damaged_value(rng, json.loads(data)["journal"])
    return sealed(said).encode("utf-8", "replace")


def _damaged_scales(rng: random.Random, data: bytes) -> bytes:
    """Other entries and tensors of every kind that torch has, in a file that is whole."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, data)
    content = torch.load(io.BytesIO(data), weights_only=True)
    content = {name: _lists(value) for name, value in content.items()}
    odd = (*ODD, *_odd_tensors(), b"bytes", (1, 2), 1j)
    out = io.BytesIO()
    torch.save(damaged_value(rng, content, odd), out)
    return out.getvalue()


def _lists(value):
    """Tuples as lists, which damage reaches into."""
    return [_lists(part) for part in value] if isinstance(value, list | tuple) else value


def _odd_tensors() -> tuple[torch.Tensor, ...]:
    ones = torch.ones(32)
    return (
        ones.to(torch.float8_e4m3fn), ones.to_sparse(), ones.to("meta"), ones.long(), ones.double(), ones.cfloat(),
        torch.ones(0), torch.ones(()), ones.view(4, 8), ones * float("nan"), -ones, ones.bool(), ones.half(),
        torch.nn.Parameter(ones), ones.expand(32, 32),
    )  # fmt: skip


READERS = {
    reader.name: reader
    for reader in (
        Reader("float config", "m/config.json", _float_model, damaged_json, _read_float),
        Reader("float weights", "m/model.safetensors", _float_model, damaged_safetensors, _read_float),
        Reader("float index", "m/model.safetensors.index.json", _sharded, damaged_json, _read_float),
        Reader("generation config", "q/generation_config.json", _checkpoint, damaged_json, _run_checkpoint),
        Reader("tokenizer", "m/tokenizer.json", _float_model, damaged_json, _read_tokenizer),
        Reader("tokenizer config", "m/tokenizer_config.json", _float_model, damaged_json, _read_tokenizer),
        Reader("gguf", "m.gguf", _gguf, _damaged_gguf, _read_float),
        Reader("scales", "s.pt", _scales, _damaged_scales, _load_scales),
        Reader("checkpoint config", "q/config.json", _checkpoint, damaged_json, _run_checkpoint),
        Reader("checkpoint weights", "q/model.safetensors", _checkpoint, damaged_safetensors, _run_checkpoint),
        Reader("recipe", "q/awq_recipe.json", _checkpoint, damaged_recipe, _replace_checkpoint),
        Reader("journal", ".q.partial/journal.json", _progress, _damaged_journal, _resume),
    )
}
