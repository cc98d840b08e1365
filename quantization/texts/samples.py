"""Calibration text and the token blocks cut from it."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.templates import Conversation, has_template, render_whole
from engine.text import begins_with_bos, encode, encode_whole
from qlinear.errors import CalibrationError, OptionError
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


# Of the text that comes along: what a small language model wrote (benchmarks/recipes/builtin_text.py), pieces of this
# project's own sources, and paragraphs in eleven languages.
PARTS = ("prose", "code", "languages")


@dataclass(frozen=True)
class CalibrationText:
    """conversations: that follow the text, as the model's chat template has them; without one, as paragraphs."""

    name: str
    text: str
    conversations: tuple[Conversation, ...] = ()

    @property
    def sha256(self) -> str:
        """Of what it says, whatever a template makes of it."""
        talked = json.dumps(self.conversations) if self.conversations else ""
        return hashlib.sha256((self.text + talked).encode()).hexdigest()


def builtin_text(parts: Sequence[str] = PARTS) -> str:
    """The text that comes along, without its conversations; prose comes first."""
    return "\n".join(map(_part, parts))


def builtin_conversations() -> tuple[Conversation, ...]:
    """Questions stand behind "> ", answers below them; a question after an empty line begins another conversation."""
    found = []
    for talk in re.split(r"\n\n(?=> )", _part("conversations").strip()):
        turns = re.split(r"^> (.*)$", talk, flags=re.MULTILINE)[1:]  # question, answer, question, answer ...
        roles = itertools.cycle(("user", "assistant"))
        found.append([{"role": role, "content": said.strip()} for role, said in zip(roles, turns, strict=False)])
    return tuple(found)


def _part(name: str) -> str:
    return (Path(__file__).with_name("builtin") / f"{name}.txt").read_text(encoding="utf-8")


def read_text(source: str) -> CalibrationText:
    """The text of a named source or of a UTF-8 file. Raises `CalibrationError`."""
    what = f"`calib_data={source}`"
    if source == BUILTIN:
        return CalibrationText(source, builtin_text(), builtin_conversations())
    if source in HUB:
        rows = read_rows(HUB[source], what, CalibrationError, "use builtin or a text file")
        return CalibrationText(source, "\n\n".join(rows))
    text = read_file(Path(source), what, CalibrationError, f", and not one of {', '.join(NAMED)}")
    return CalibrationText(Path(source).name, text)


def token_blocks(
    tokenizer, text: CalibrationText, recipe: Recipe, as_drawn: bool = False, tell: Callable[[str], object] = str
) -> tuple[Tensor, bool]:
    """Up to `n_samples` blocks, drawn without replacement, in the order of the text: `(samples, seqlen)` int64.

    And whether the token for the beginning of a text stood before it. as_drawn: in the order in which they are drawn,
    so that fewer samples of the same seed come first among more; tell: is told what of the text is not as it should be.
    Raises `CalibrationError` if the text holds less than
    one block.
    """
    written, talked = encode_whole(tokenizer, text.text, recipe.bos), _talked(tokenizer, text.conversations, tell)
    ids = torch.from_numpy(np.concatenate([written, encode(tokenizer, talked)]) if talked else written)
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


def _talked(tokenizer, conversations: tuple[Conversation, ...], tell: Callable[[str], object]) -> str:
    """Some templates do not take all conversations: those are paragraphs then, too."""
    found: list[str | None] = [None] * len(conversations)
    if conversations and has_template(tokenizer):
        with suppress(OptionError, OSError):
            found = render_whole(tokenizer, conversations)
        if refused := found.count(None):
            tell(
                f"conversations of the calibration text that the chat template does not take: {refused}, as paragraphs"
            )
    plain = ("\n\n".join(message["content"] for message in messages) for messages in conversations)
    return "\n\n".join(made or paragraphs for made, paragraphs in zip(found, plain, strict=True))
