"""Progress that outlives its run: tensors in numbered files, and a journal that says which of them count.

A file counts from the moment a journal names it, and a journal takes the place of the one before in a single rename,
after everything it names is on the disk. So whatever instant a run is killed at, the directory holds the last step that
was kept, whole. What the journal does not name is swept out after it is written.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlinear.errors import CheckpointError

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
    kept: names of the kept tensors of each file; state: the file of the last state.
    """

    directory: Path
    number: int = 0
    fingerprint: dict = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    files: list[tuple[str, int]] = field(default_factory=list)
    kept: dict[str, list[str]] = field(default_factory=dict)
    state: str | None = None

    def __post_init__(self) -> None:
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
            content = json.loads((directory / NAME).read_text(encoding="utf-8"))
            files = [(str(file), int(size)) for file, size in content.pop("files")]
            journal = cls(directory, files=files, **content)
            if not (journal.record and isinstance(journal.record, dict) and isinstance(journal.fingerprint, dict)):
                raise ValueError("no record")
            journal._named = journal._mine()
            if not all(re.fullmatch(r"\d+\.safetensors", file) for file in journal._named):
                raise ValueError("a file that is not numbered")
        return journal

    def successor(self) -> "Journal":
        """A journal to start over with. It replaces this one, and what belongs to it, with its first snapshot."""
        journal = Journal(self.directory, self.number)
        journal._named = self._named
        return journal

    def check(self) -> None:
        """Raise `CheckpointError` unless all that is named is there and whole."""
        with self.reading():
            for file in sorted(self._named):
                with safe_open(self.directory / file, framework="pt"):
                    pass

    def identify(self, marks: dict[str, str | int | bool | None]) -> None:
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
            raise CheckpointError(f"cannot write {self.directory / file}: {error}") from error
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

    def keep(self, snapshot: Callable[[], Snapshot], in_any_case: bool = False) -> None:
        """Put the step that ends here on record, if it is worth it by now. Raises `CheckpointError` if that fails."""
        start = time.monotonic()
        if start < self._next_write and not in_any_case:
            return
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
            partial.write_text(json.dumps(content), encoding="utf-8")
            for file in [*filter(named.__contains__, self._unsynced), partial.name]:
                _sync(self.directory / file)
            partial.rename(self.directory / NAME)
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _one_line_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"the progress in {directory} is damaged ({reason}); start over without `resume`"
        ) from error
