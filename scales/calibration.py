"""Calibration text and its token blocks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qlinear.errors import CalibrationError


@dataclass(frozen=True)
class CalibrationText:
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def _builtin() -> str:
    """What a small language model wrote, going on from openings of many kinds (benchmarks/builtin_text.py)."""
    return Path(__file__).with_name("builtin.txt").read_text(encoding="utf-8")


def _hub(path: str, config: str | None, split: str, limit: int = 4000) -> Callable[[], str]:
    def read() -> str:
        from datasets import load_dataset

        rows = load_dataset(path, config, split=split, streaming=True)
        return "\n\n".join(row["text"] for row in rows.take(limit))

    return read


SOURCES: dict[str, Callable[[], str]] = {
    "builtin": _builtin,
    "pileval": _hub("mit-han-lab/pile-val-backup", None, "validation"),
    "wikitext2": _hub("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
    "c4": _hub("allenai/c4", "en", "validation"),
}


# The name under which a model writes its own calibration tokens (see `selftext`).
SELF = "self"


def read_text(source: str) -> CalibrationText:
    """The text of a named source or of a UTF-8 file. Raises `CalibrationError`."""
    if source in SOURCES:
        try:
            return CalibrationText(source, SOURCES[source]())
        except Exception as error:  # the hub's client raises its own errors, and those of every layer below it
            raise CalibrationError(
                f"--calib_data {source} could not be fetched ({type(error).__name__}); without a network, use builtin "
                f"or a text file"
            ) from error
    try:
        return CalibrationText(Path(source).name, Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        names = ", ".join([*SOURCES, SELF])
        raise CalibrationError(f"--calib_data {source}: no such file, and not one of {names}") from error
    except (OSError, ValueError) as error:  # not UTF-8, or not even a path
        raise CalibrationError(f"--calib_data {source} cannot be read as UTF-8 text: {error}") from error


def token_blocks(tokenizer, text: CalibrationText, n_samples: int, seqlen: int, seed: int) -> Tensor:
    """Up to `n_samples` blocks, drawn without replacement, in the order of the text: `(samples, seqlen)` int64.

    Raises `CalibrationError` if the text holds less than one block.
    """
    ids = tokenizer(text.text, add_special_tokens=False, verbose=False)["input_ids"]
    available = len(ids) // seqlen
    if available == 0:
        raise CalibrationError(
            f"calibration text {text.name} has {len(ids)} tokens, less than one block of --seqlen {seqlen}; use a "
            f"longer text or a smaller --seqlen"
        )
    blocks = torch.tensor(ids[: available * seqlen]).view(available, seqlen)
    drawn = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:n_samples]
    return blocks[drawn.sort().values]
