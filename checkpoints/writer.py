"""Write a quantized checkpoint: step by step into a hidden directory, whole into its place when complete."""

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import older
from checkpoints.beside import Beside
from checkpoints.journal import Journal, Snapshot
from checkpoints.lock import Lock
from checkpoints.place import check_space, refuse_what_is_not_ours, resolved
from checkpoints.quantized import read_tokenizer
from checkpoints.recipes import RECIPE
from qlinear.errors import AwqError, CheckpointError, one_line
from qlinear.files import exchange, json_text

# The least a shard holds, unless it is the last.
SHARD_BYTES = 2**30


@dataclass(frozen=True)
class Description:
    """What a checkpoint holds that is no weight, as transformers has it.

    beside: the float model's other files; dtype: of the floats; card: the text of README.md.
    """

    config: Any
    generation_config: Any
    tokenizer: Any
    beside: Beside | None = None
    trust_remote_code: bool = False
    dtype: torch.dtype = torch.bfloat16
    card: str | None = None

    def save(self, directory: Path) -> None:
        """Raises `OSError`, and `CheckpointError` for whatever else the libraries make of it."""
        try:
            self.config.save_pretrained(directory)
            if self.generation_config is not None:
                # Not save_pretrained: it refuses what many a model on the hub has, a temperature without do_sample.
                self.generation_config.to_json_file(directory / "generation_config.json")
            self.tokenizer.save_pretrained(directory)
            older.rewrite(directory)
            if self.card is not None:
                # the bytes of a file's name that are no UTF-8, spelled
                (directory / "README.md").write_text(self.card, encoding="utf-8", errors="backslashreplace")
            if self.beside is not None:
                self.beside.copy(directory)
        except OSError:
            raise
        except Exception as error:
            raise CheckpointError(f"configuration or tokenizer cannot be saved: {one_line(error)}") from error

    def check_saved(self, directory: Path) -> None:
        """Raises `CheckpointError` for a tokenizer that cannot be read back from where it was saved."""
        try:
            read_tokenizer(directory, self.trust_remote_code)
        except AwqError as error:
            raise CheckpointError(f"the model's tokenizer, once saved, is not read back: {error}") from error


class CheckpointWriter:
    """A directory that appears whole or not at all.

    Use it in a `with`: leaving it without `finish`, for whatever reason, leaves what the journal has on record in a
    hidden directory, for a run with `resume`, and nothing if that is nothing.
    """

    def __init__(self, directory: Path, overwrite: bool = False, resume: bool = False, source: tuple[Path, ...] = ()):
        """source: the files of the model, which are not to be replaced.

        Raises `CheckpointError` if something is there already, unless it is ours and `overwrite` is given.
        """
        self._place = resolved(directory)  # "." has no name to put another beside
        refuse_what_is_not_ours(directory, source)
        if directory.exists() and not overwrite:
            raise CheckpointError(f"{directory} exists already; give `overwrite` to replace it, or another `output`")
        self.directory = directory
        self.resume = resume
        self._source = source
        self.partial = self._place.with_name(f".{self._place.name}.partial")
        if os.path.islink(self.partial):
            raise CheckpointError(f"{self.partial} is a link, and progress is kept in no other place; remove it")
        self._finished = self.partial / "checkpoint"
        self._made = [folder for folder in self._place.parents if not folder.exists()]
        self._pending: dict[str, Tensor] = {}

    def __enter__(self) -> "CheckpointWriter":
        """Raises `CheckpointError` if another run writes here, or if there is nothing to resume."""
        try:
            self._lock = Lock(
                self.partial / "lock",
                f"another run is writing {self.directory}; wait until it has ended, or give another `output`",
            )
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.directory.parent}: {error.strerror}") from error
        try:
            self.journal = self._continued() if self.resume else self._begun()
        except BaseException:
            self._leave()
            raise
        return self

    def _continued(self) -> Journal:
        journal = Journal.read(self.partial)
        if journal is None:
            raise CheckpointError(
                f"`resume`: no run that was stopped has left anything for {self.directory}; leave `resume` out to start"
            )
        self._take_names_back(journal)
        journal.check()
        return journal

    def _begun(self) -> Journal:
        """Progress that is there already stays until there is some that takes its place."""
        try:
            earlier = Journal.read(self.partial)
        except CheckpointError:
            earlier = None
        if earlier is None:
            self._clear()
            return Journal(self.partial)
        self._take_names_back(earlier)
        return earlier.successor()

    def __exit__(self, *_) -> None:
        if self.journal.is_kept:
            self.journal.sweep()
        else:
            self._clear()
        self._leave()

    def _clear(self) -> None:
        for path in self.partial.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._lock.path:
                path.unlink()

    def _leave(self) -> None:
        self._lock.release()
        for folder in (self.partial, *self._made):  # the innermost first
            with suppress(OSError):  # it holds something
                folder.rmdir()

    def rehearse(self, description: Description, size: int) -> None:
        """Try what comes after the last block before the first: hours lie between them.

        size: bytes of tensors that the checkpoint is going to hold at least. Raises `CheckpointError` for what cannot
        be saved and read back, and for a disk without room.
        """
        rehearsal = self.partial / "rehearsal"
        with self._one_line_errors():
            check_space(self.partial, size - sum(stored for _, stored in self.journal.files), self.directory)
            shutil.rmtree(rehearsal, ignore_errors=True)  # of a run that was killed
            try:
                rehearsal.mkdir()
                description.save(rehearsal)
                description.check_saved(rehearsal)
            finally:
                shutil.rmtree(rehearsal, ignore_errors=True)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"cannot write {self.directory}: {error}") from error

    def add(self, name: str, tensor: Tensor) -> None:
        self._pending[name] = tensor.detach().contiguous()
        if sum(pending.nbytes for pending in self._pending.values()) >= SHARD_BYTES:
            self.flush()

    def end_step(self, snapshot: Callable[[], Snapshot], in_any_case: bool = False) -> None:
        """Write what was added, and put it on record with a snapshot of the run, if it is worth it or `in_any_case`."""
        self.flush()
        self.journal.keep(snapshot, in_any_case)

    def stored(self) -> dict[str, Tensor]:
        """All that was added so far, mapped: it takes memory as it is read."""
        self.flush()
        return {name: tensor for file, _ in self.journal.files for name, tensor in self.journal.load(file).items()}

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Put others of the same shapes and dtypes in the place of those of these names, as of the next step."""
        self.flush()
        for index, (file, size) in enumerate(self.journal.files):
            held = self.journal.load(file)
            if tensors.keys() & held.keys():
                new = {name: tensors.get(name, tensor).contiguous() for name, tensor in held.items()}
                self.journal.files[index] = (self.journal.store(new), size)

    def flush(self) -> None:
        """Write what was added: a step that is not worth keeping by itself."""
        if not self._pending:
            return
        size = sum(tensor.nbytes for tensor in self._pending.values())
        self.journal.files.append((self.journal.store(self._pending), size))
        self._pending = {}
        self._merge(SHARD_BYTES)

    def _merge(self, least: int) -> None:
        """Make one shard of the newest file and those before it that are in none yet, if they hold `least` bytes."""
        files = self.journal.files
        first = max((index + 1 for index, (_, size) in enumerate(files[:-1]) if size >= SHARD_BYTES), default=0)
        small, size = files[first:], sum(size for _, size in files[first:])
        if len(small) > 1 and size >= least:
            tensors = {name: tensor for file, _ in small for name, tensor in self.journal.load(file).items()}
            files[first:] = [(self.journal.store(tensors), size)]

    def finish(
        self,
        description: Description,
        quantization: dict,
        recipe: dict,
        check: Callable[[Path], str | None] = lambda directory: None,
    ) -> None:
        """Write what is not a weight, have the whole checked, and give the directory its name.

        check: raises `CheckpointError` for a directory that is not to be published; its `checkpoints.proofs.proof`.
        """
        self.flush()
        self._merge(0)
        if self.journal.record:
            self.journal.write(self.journal.record)
        config = copy.deepcopy(description.config)
        config.quantization_config = quantization
        config.dtype = description.dtype
        with self._one_line_errors():
            self._finished.mkdir()
            replace(description, config=config).save(self._finished)
            shards = _shard_names(len(self.journal.files))
            index = ["model.safetensors.index.json"] * (len(shards) > 1)
            files = {str(path.relative_to(self._finished)) for path in self._finished.rglob("*") if path.is_file()}
            recipe = {**recipe, "files": sorted(files.union(shards, index, [RECIPE]))}
            (self._finished / RECIPE).write_text(json_text(recipe) + "\n", encoding="utf-8")
            self._name_shards()
            recipe["proof"] = check(self._finished)
            (self._finished / RECIPE).write_text(json_text(recipe) + "\n", encoding="utf-8")
            self._publish()
        self._clear()

    def _name_shards(self) -> None:
        files, names = self.journal.files, _shard_names(len(self.journal.files))
        if len(names) > 1:
            weight_map = {
                key: name for (file, _), name in zip(files, names, strict=True) for key in self.journal.load(file)
            }
            content = {"metadata": {"total_size": sum(size for _, size in files)}, "weight_map": weight_map}
            index = self._finished / "model.safetensors.index.json"
            index.write_text(json_text(content), encoding="utf-8")
        for (file, _), name in zip(files, names, strict=True):
            # The permissions of a file written the usual way: safetensors lets only the owner read.
            with suppress(OSError):  # some file systems have none to change
                shutil.copymode(self._finished / RECIPE, self.partial / file)
            (self.partial / file).rename(self._finished / name)

    def _take_names_back(self, journal: Journal) -> None:
        """Undo what a run did that was stopped after it began to name its shards."""
        for (file, _), name in zip(journal.files, _shard_names(len(journal.files)), strict=True):
            if (self._finished / name).is_file():
                (self._finished / name).rename(self.partial / file)
        shutil.rmtree(self._finished, ignore_errors=True)

    def _publish(self) -> None:
        if not self._place.exists():
            self._finished.rename(self._place)
            return
        refuse_what_is_not_ours(self.directory, self._source)  # what may have come since
        replaced = self.partial.with_suffix(".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if exchange(self._finished, self._place):
            self._finished.rename(replaced)
        else:
            self._place.rename(replaced)
            try:
                self._finished.rename(self._place)
            except BaseException:  # an interrupt too: what was there goes back to its place
                replaced.rename(self._place)
                raise
        shutil.rmtree(replaced, ignore_errors=True)  # the new one is in its place, whatever becomes of the old


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)]
