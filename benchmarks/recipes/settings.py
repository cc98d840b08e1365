"""What is the same for all rows of a table."""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the command was given; None where the program's own default holds. work: where what is done is kept."""

    model_name: str
    group_size: int | None
    calib_data: str
    n_samples: int
    eval_data: str | None
    dataset: str | None
    n_windows: int | None
    limit: int | None
    threads: int | None
    work: Path

    def command(self) -> str:
        """As one would type it again: with the names of files, not the places where they happened to be."""
        words = ["python", "-m", "benchmarks.recipes"]
        for name, value in vars(self).items():
            if value is not None and name != "work":
                named = value if name == "model_name" else Path(value).name if isinstance(value, str) else str(value)
                words += [f"--{name}", named]
        return shlex.join(words)
