"""A file that one process holds at a time."""

import fcntl
import os
from pathlib import Path

from qlinear.errors import CheckpointError


class Lock:
    """Held until `release` or the end of the process, however it ends; its folder is made where there is none."""

    def __init__(self, path: Path, held: str):
        """Raises `CheckpointError` with the message `held` if another process, or this one, has it already."""
        self.path = path
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._file.close()
                raise CheckpointError(held) from error
            except OSError:
                return  # a file system without locks: nobody else can be seen there
            if self._is_in_place():
                return
            self._file.close()  # its last holder removed it between our opening and locking it

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()
