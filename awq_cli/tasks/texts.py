"""Text to score and to cut benchmark prompts from, and its tokens."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qlinear.errors import AwqError, OptionError
from scales.calibration import read_text

# `--dataset` names of the original command -> wikitext-2 configurations.
WIKITEXT = {"raw": "wikitext-2-raw-v1", "non-raw": "wikitext-2-v1"}


@dataclass(frozen=True)
class Text:
    name: str
    text: str


def open_text(source: str) -> Text:
    """The test split of wikitext-2 by its short name, joined as llm-awq and GPTQ evaluate it, or a UTF-8 file."""
    if source in WIKITEXT:
        return Text(WIKITEXT[source], "\n\n".join(_wikitext_rows(WIKITEXT[source])))
    try:
        return Text(Path(source).name, Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OptionError(f"--dataset {source}: no such file, and neither raw nor non-raw") from error
    except OSError as error:
        raise OptionError(f"--dataset {source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"--dataset {source} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _wikitext_rows(config: str) -> list[str]:
    from datasets import load_dataset

    try:
        return list(load_dataset("Salesforce/wikitext", config, split="test")["text"])
    except Exception as error:  # the hub's client raises its own errors, and those of every layer below it
        raise OptionError(
            f"wikitext-2 could not be fetched from the hub ({type(error).__name__}); without a network, give a text "
            f"file: --dataset FILE"
        ) from error


def benchmark_text(source: str | None) -> tuple[Text, str | None]:
    """The text benchmark prompts are cut from, and what to tell the user if it is not the one they asked for."""
    builtin = read_text("builtin")
    fallback = Text(builtin.name, builtin.text)
    if source is None:
        return fallback, None
    if source not in WIKITEXT:
        return open_text(source), None
    try:
        return open_text(source), None
    except AwqError as error:
        return fallback, f"{error}; using the built-in text"


def encode(tokenizer, text: str, special: bool = False) -> Tensor:
    """Token ids `(length,)`; `special` adds the tokens the tokenizer puts around a prompt."""
    return torch.tensor(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"], dtype=torch.int64)
