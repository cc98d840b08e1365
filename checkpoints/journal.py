"""Progress that outlives its run: tensors in numbered files, and a journal that says which of them count.

A file counts from the moment a journal names it, and a journal takes the place of the one before in a single rename,
after everything it names is on the disk. So whatever instant a run is killed at, the directory holds the last step that
was kept, whole. What the journal does not name is swept out after it is written. Its own digest and those of the files
are in it: what was damaged since is not gone on with.
"""

import errno
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from qlinear.errors import CheckpointError, is_out_of_memory, one_line
from qlinear.files import is_text, json_text

NAME = "journal.json"

# A step is kept when this many times what keeping one takes has passed since the last: steps that are quicker than that
# are cheaper made again, and keeping never costs more than a twentieth of a run.
WORTH = 20


@dataclass(frozen=True)
class Snapshot:
    """Where a run stands after a step.

    record: whatever JSON holds; kept: tensors by name, of which only those are written that no snapshot had before;
    state: tensors that take the place of those in the snapshot before.
    """

    record: dict
    kept: dict[str, Tensor]
    state: dict[str, Tensor]


@dataclass
class Journal:
    """What is told of a run in `directory`. Files are named by a number that never comes again.

    fingerprint: what the steps depend on; record: the last snapshot's, empty before the first;
    files: the tensors of the product in their order, (file, bytes of the tensors in it);
    kept: names of the kept tensors of each file; state: the file of the last state; sums: CRC-32 of each file.
    """

    directory: Path
    number: int = 0
    fingerprint: dict = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    files: list[tuple[str, int]] = field(default_factory=list)
    kept: dict[str, list[str]] = field(default_factory=dict)
    state: str | None = None
    sums: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replaced: dict = {}  # the fingerprint of the run that this one is going to take the place of
        self._named: set[str] = set()  # by the journal that is on the disk
        self._unsynced: list[str] = []
        self._next_write = 0.0

    @property
    def is_kept(self) -> bool:
        """Whether the directory holds steps of this run, or of an earlier one that this has not replaced yet."""
        return bool(self._named)

    @property
    def replaces(self) -> bool:
        """Whether the first snapshot is going to take the place of an earlier run's."""
        return self.is_kept and not self.record

    @classmethod
    def read(cls, directory: Path) -> "Journal | None":
        """The journal of a directory, None if there is none. Raises `CheckpointError` if it makes no sense."""
        with _one_line_errors(directory):
            if not (directory / NAME).is_file():
                return None
            content = _opened((directory / NAME).read_text(encoding="utf-8"))
            journal = cls(directory, **content)
            journal.files = [(file, size) for file, size in journal.files]
            journal._check_kinds()
            journal._named = journal._mine()
        return journal

    def successor(self) -> "Journal":
        """A journal to start over with. It replaces this one, and what belongs to it, with its first snapshot."""
        journal = Journal(self.directory, self.number)
        journal._named, journal.replaced = self._named, self.fingerprint
        return journal

    def _check_kinds(self) -> None:
        """Raise `ValueError` unless every field is of its kind, and the files are named as they are numbered here."""
        held = [*(file for file, _ in self.files), *self.kept, self.state]
        plain = (str, int, float, bool, type(None))
        right = (
            type(self.number) is int
            and isinstance(self.fingerprint, dict)
            and all(
                type(mark) in plain and len(str(mark)) < 300 and is_text(str(mark))
                for mark in self.fingerprint.values()
            )
            and len(str(self.fingerprint)) < 10_000
            and isinstance(self.record, dict)
            and bool(self.record)
            and all(re.fullmatch(r"\d{6,9}\.safetensors", file) and int(file[:-12]) <= self.number for file in held)
            and len(set(held)) == len(held)
            and all(type(size) is int and size > 0 for _, size in self.files)
            and all(isinstance(names, list) for names in self.kept.values())
            and self.sums.keys() == set(held)
        )
        if not right:
            raise ValueError("it does not say what a journal says")

    def check(self) -> None:
        """Raise `CheckpointError` unless all that is named is there, whole and as it was written."""
        with self.reading():
            sizes = dict(self.files)
            for file in sorted(self._named):
                if _crc(self.directory / file) != self.sums[file]:
                    raise ValueError(f"{file} is not what was written")
                held = self.load(file)
                if file in sizes and sum(tensor.nbytes for tensor in held.values()) != sizes[file]:
                    raise ValueError(f"{file} holds more or less than its {sizes[file]} bytes")
                if file in self.kept and held.keys() != set(self.kept[file]):
                    raise ValueError(f"{file} holds other tensors than those kept")

    def stored(self) -> set[str]:
        """The names of the product's tensors."""
        with self.reading():
            return {name for file, _ in self.files for name in self.load(file)}

    def identify(self, marks: dict[str, str | int | float | bool | None]) -> None:
        """Add to the fingerprint; in a run taken up again, raise `CheckpointError` for the first mark that differs."""
        for name, value in marks.items():
            was = self.fingerprint.get(name)
            if self.record and was != value:
                raise CheckpointError(
                    f"`resume`: the run that stopped had {name} {was}, this one has {value}; give what it had, or start"
                    f" over without `resume`"
                )
            self.fingerprint[name] = value

    def store(self, tensors: dict[str, Tensor]) -> str:
        """Write tensors to a new file, which counts once it is named in what is kept; its name.

        Raises `CheckpointError` where it cannot be written.
        """
        self.number += 1
        file = f"{self.number:06}.safetensors"
        try:
            save_file(tensors, self.directory / file, metadata={"format": "pt"})
        except Exception as error:  # the library wraps the operating system's errors in its own
            raise CheckpointError(f"cannot write {self.directory / file}: {one_line(error)}") from error
        self._unsynced.append(file)
        return file

    def load(self, file: str) -> dict[str, Tensor]:
        """A file's tensors, mapped: they take memory as they are read."""
        return load_file(self.directory / file)

    def load_kept(self) -> dict[str, Tensor]:
        """All kept tensors by name."""
        return {name: tensor for file in self.kept for name, tensor in self._copied(file).items()}

    def load_state(self) -> dict[str, Tensor]:
        """The tensors of the last state by name."""
        return self._copied(self.state) if self.state else {}

    def reading(self):
        """A context in which whatever goes wrong is damage to the progress: a `CheckpointError` of one line."""
        return _one_line_errors(self.directory)

    def _copied(self, file: str) -> dict[str, Tensor]:
        with self.reading():
            return {name: tensor.clone() for name, tensor in self.load(file).items()}

    @property
    def is_due(self) -> bool:
        """Whether a step that ended now would be worth keeping."""
        return time.monotonic() >= self._next_write

    def keep(self, snapshot: Callable[[], Snapshot], in_any_case: bool = False) -> None:
        """Put the step that ends here on record, if it is worth it by now. Raises `CheckpointError` if that fails."""
        if not (in_any_case or self.is_due):
            return
        start = time.monotonic()
        now = snapshot()
        known = {name for names in self.kept.values() for name in names}
        new = {name: tensor.contiguous() for name, tensor in now.kept.items() if name not in known}
        if new:
            self.kept[self.store(new)] = list(new)
        self.state = self.store({name: tensor.contiguous() for name, tensor in now.state.items()})
        self.write(now.record)
        end = time.monotonic()
        self._next_write = end + WORTH * (end - start)

    def write(self, record: dict) -> None:
        """Make the journal on the disk say what this one says, with the record of the step that it says it of."""
        content = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "directory"}
        content["record"] = record
        partial = self.directory / f"{NAME}.partial"
        named = self._mine()
        try:
            for file in named - self.sums.keys():
                self.sums[file] = _crc(self.directory / file)
            content["sums"] = {file: self.sums[file] for file in sorted(named)}
            partial.write_text(sealed(content), encoding="utf-8")
            for file in [*filter(named.__contains__, self._unsynced), partial.name]:
                _sync(self.directory / file)
            before, self._named = self._named, self._named | named  # an interrupt may come on either side of the rename
            try:
                partial.rename(self.directory / NAME)
            except OSError:
                self._named = before
                raise
            _sync(self.directory)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.directory / NAME}: {error}") from error
        self.record, self._unsynced, self._named = record, [], named
        self.sweep()

    def sweep(self) -> None:
        """Remove what the journal on the disk does not name."""
        for path in self.directory.glob("*.safetensors"):
            if path.name not in self._named:
                path.unlink()
        (self.directory / f"{NAME}.partial").unlink(missing_ok=True)

    def _mine(self) -> set[str]:
        return {file for file, _ in self.files} | set(self.kept) | {self.state}


def sealed(content: dict) -> str:
    """The text of a journal: what it says, and a digest of it."""
    return json_text({"sha256": _digest(content), "journal": content}, indent=None)


def _opened(text: str) -> dict:
    """What a journal says. Raises `ValueError` where its digest says otherwise."""
    outer = json.loads(text)
    content = outer["journal"]
    if outer["sha256"] != _digest(content):
        raise ValueError("its digest is another")
    return content


def _digest(content: dict) -> str:
    return hashlib.sha256(json_text(content, indent=None, sort_keys=True).encode()).hexdigest()


def _crc(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return crc


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # some file systems have that for directories
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _one_line_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # whatever a library makes of damage
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"the progress in {directory} is damaged ({one_line(error)}); start over without `resume`"
        ) from error
