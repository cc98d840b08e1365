"""Text to score and to cut benchmark prompts from."""

from dataclasses import dataclass
from pathlib import Path

from qlinear.errors import AwqError, OptionError
from quantization.texts.files import read_file
from quantization.texts.hub import read_rows, split_rows
from quantization.texts.samples import BUILTIN, builtin_text

# `--dataset` names of the original command -> wikitext-2 configurations.
WIKITEXT = {"raw": "wikitext-2-raw-v1", "non-raw": "wikitext-2-v1"}


@dataclass(frozen=True)
class Text:
    name: str
    text: str


def open_text(source: str) -> Text:
    """The test split of wikitext-2 by its short name, joined as llm-awq and GPTQ evaluate it, or a UTF-8 file."""
    if source in WIKITEXT:
        read = split_rows("Salesforce/wikitext", WIKITEXT[source], "test")
        rows = read_rows(read, f"wikitext-2 (`dataset={source}`)", OptionError, "give a text file: `dataset=FILE`")
        return Text(WIKITEXT[source], "\n\n".join(rows))
    text = read_file(Path(source), f"`dataset={source}`", OptionError, ", and neither raw nor non-raw")
    return Text(Path(source).name, text)


def benchmark_text(source: str | None) -> tuple[Text, str | None]:
    """The text benchmark prompts are cut from, and what to tell the user if it is not the one they asked for."""
    fallback = Text(BUILTIN, builtin_text())
    if source is None:
        return fallback, None
    if source not in WIKITEXT:
        return open_text(source), None
    try:
        return open_text(source), None
    except AwqError as error:
        return fallback, f"{error}; using the built-in text"
