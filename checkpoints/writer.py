"""Write a quantized checkpoint: tensor by tensor into a hidden directory, renamed when complete."""

import copy
import json
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints.store import RECIPE
from qlinear.errors import CheckpointError

# Tensors held before a shard is written: what quantizing costs in memory beyond the block at hand.
SHARD_BYTES = 2**30


class CheckpointWriter:
    """A directory that appears whole or not at all.

    Use it in a `with`: leaving it without `finish`, for whatever reason, removes what was written.
    """

    def __init__(self, directory: Path, overwrite: bool = False):
        """Raises `CheckpointError` if something is there already and `overwrite` is not given."""
        if directory.exists() and not (directory / "config.json").is_file():
            raise CheckpointError(f"{directory} is there already and no checkpoint; give another --output")
        if directory.exists() and not overwrite:
            raise CheckpointError(f"{directory} exists already; give --overwrite to replace it, or another --output")
        self.directory = directory
        self._place = directory.resolve()  # "." has no name to put another beside
        self.partial = self._place.with_name(f".{self._place.name}.partial")
        self._made = [folder for folder in self._place.parents if not folder.exists()]
        self.bytes = 0
        self._pending: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []

    def __enter__(self) -> "CheckpointWriter":
        try:
            shutil.rmtree(self.partial, ignore_errors=True)  # of a run that was killed
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.directory.parent}: {error.strerror}") from error
        return self

    def __exit__(self, *_) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        for folder in self._made:  # the innermost first
            with suppress(OSError):  # it holds something
                folder.rmdir()

    def add(self, name: str, tensor: Tensor) -> None:
        self._pending[name] = tensor.detach().contiguous()
        if sum(pending.nbytes for pending in self._pending.values()) >= SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self.partial / f"shard-{len(self._shards)}"
        try:
            save_file(self._pending, path, metadata={"format": "pt"})
        except Exception as error:  # the library wraps the operating system's errors in its own
            raise CheckpointError(f"cannot write {path}: {error}") from error
        self.bytes += sum(tensor.nbytes for tensor in self._pending.values())
        self._shards.append(list(self._pending))
        self._pending = {}

    def _as_readable_as(self, other: Path) -> None:
        """Give the shards the permissions of a file written the usual way: safetensors lets only the owner read."""
        for index in range(len(self._shards)):
            shutil.copymode(other, self.partial / f"shard-{index}")

    def finish(self, config, generation_config, tokenizer, quantization: dict, recipe: dict) -> None:
        """Write what is not a weight, and give the directory its name."""
        self._flush()
        config = copy.deepcopy(config)
        config.quantization_config = quantization
        config.dtype = torch.bfloat16
        try:
            config.save_pretrained(self.partial)
            if generation_config is not None:
                # Not save_pretrained: it refuses what many a model on the hub has, a temperature without do_sample.
                generation_config.to_json_file(self.partial / "generation_config.json")
            tokenizer.save_pretrained(self.partial)
            (self.partial / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
            self._as_readable_as(self.partial / RECIPE)
            self._name_shards()
            self._publish()
        except OSError as error:
            raise CheckpointError(f"cannot write {self.directory}: {error}") from error

    def _name_shards(self) -> None:
        count = len(self._shards)
        if count == 1:
            (self.partial / "shard-0").rename(self.partial / "model.safetensors")
            return
        weight_map = {}
        for index, names in enumerate(self._shards):
            file = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            (self.partial / f"shard-{index}").rename(self.partial / file)
            weight_map.update(dict.fromkeys(names, file))
        content = {"metadata": {"total_size": self.bytes}, "weight_map": weight_map}
        (self.partial / "model.safetensors.index.json").write_text(json.dumps(content, indent=2), encoding="utf-8")

    def _publish(self) -> None:
        if not self._place.exists():
            self.partial.rename(self._place)
            return
        replaced = self.partial.with_suffix(".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        self._place.rename(replaced)
        try:
            self.partial.rename(self._place)
        except BaseException:  # an interrupt too: what was there goes back to its place
            replaced.rename(self._place)
            raise
        shutil.rmtree(replaced)


def quantization_section(bits: int, group_size: int, head: tuple[str, int] | None, kept: list[str]) -> dict:
    """The `quantization_config` of `config.json`.

    head: name and group size of the output head if it is quantized; kept: names of linears left in bfloat16.
    `dequantize` lets transformers turn the weights to bfloat16 as it loads them: its other way, which keeps them packed
    until the first forward, expects unpacked zero points and refuses every asymmetric checkpoint. Readers with kernels
    of their own (vLLM) pass over it.
    """
    from compressed_tensors.quantization import QuantizationConfig

    def scheme(targets: list[str], size: int) -> dict:
        weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": size}
        return {"targets": targets, "weights": weights}

    groups = {"group_0": scheme(["Linear"], group_size)}
    if head is not None:
        groups["group_1"] = scheme([f"re:.*{head[0]}$"], head[1])
    section = QuantizationConfig(
        config_groups=groups, format="pack-quantized", quantization_status="compressed", ignore=kept
    )
    return {**section.model_dump(mode="json", exclude_none=True), "dequantize": True}
