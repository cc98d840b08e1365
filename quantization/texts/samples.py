"""Calibration text and the token blocks cut from it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.text import begins_with_bos, encode_whole
from qlinear.errors import CalibrationError
from quantization.recipe import Recipe
from quantization.texts.files import read_file
from quantization.texts.hub import read_rows, split_rows

BUILTIN = "builtin"
SELF = "self"  # what the model writes itself (see `texts.own`)
HUB = {
    "pileval": split_rows("mit-han-lab/pile-val-backup", None, "validation", 4000),
    "wikitext2": split_rows("Salesforce/wikitext", "wikitext-2-raw-v1", "train", 4000),
    "c4": split_rows("allenai/c4", "en", "validation", 4000),
}
NAMED = (BUILTIN, *HUB, SELF)


@dataclass(frozen=True)
class CalibrationText:
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def builtin_text() -> str:
    """What a small language model wrote, going on from openings of many kinds (benchmarks/recipes/builtin_text.py)."""
    return Path(__file__).with_name("builtin.txt").read_text(encoding="utf-8")


def read_text(source: str) -> CalibrationText:
    """The text of a named source or of a UTF-8 file. Raises `CalibrationError`."""
    what = f"`calib_data={source}`"
    if source == BUILTIN:
        return CalibrationText(source, builtin_text())
    if source in HUB:
        rows = read_rows(HUB[source], what, CalibrationError, "use builtin or a text file")
        return CalibrationText(source, "\n\n".join(rows))
    text = read_file(Path(source), what, CalibrationError, f", and not one of {', '.join(NAMED)}")
    return CalibrationText(Path(source).name, text)


def token_blocks(tokenizer, text: CalibrationText, recipe: Recipe, as_drawn: bool = False) -> tuple[Tensor, bool]:
    """Up to `n_samples` blocks, drawn without replacement, in the order of the text: `(samples, seqlen)` int64.

    And whether the token for the beginning of a text stood before it. as_drawn: in the order in which they are drawn,
    so that fewer samples of the same seed come first among more. Raises `CalibrationError` if the text holds less than
    one block.
    """
    ids = torch.from_numpy(encode_whole(tokenizer, text.text, recipe.bos))
    seqlen = recipe.seqlen
    available = len(ids) // seqlen
    if available == 0:
        raise CalibrationError(
            f"calibration text {text.name} has {len(ids)} tokens, less than one block of `seqlen={seqlen}`; use a "
            f"longer text or a smaller `seqlen`"
        )
    blocks = ids[: available * seqlen].view(available, seqlen)
    drawn = torch.randperm(available, generator=torch.Generator().manual_seed(recipe.seed))[: recipe.n_samples]
    return blocks[drawn if as_drawn else drawn.sort().values], begins_with_bos(tokenizer, ids)
