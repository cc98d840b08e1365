"""Open a model's tokenizer, and say what is wrong with its chat template."""

from pathlib import Path
from typing import Any

from checkpoints.plain_tokenizer import PROBES
from qlinear.errors import ModelError, one_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def open_tokenizer(directory: Path, trust_remote_code: bool) -> Any:
    """Raises `ModelError` where there is none, and whatever a library makes of one that is damaged."""
    from transformers import AutoTokenizer

    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"{directory} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    own_code = type(tokenizer).__module__.partition(".")[0] == "transformers_modules"
    if (directory / "tokenizer.json").is_file() and not own_code:
        tokenizer = _as_its_file_says(directory, tokenizer)
    tokenizer.decode(tokenizer("a b")["input_ids"])  # some of its settings are not looked at before
    return tokenizer


def _as_its_file_says(directory: Path, tokenizer: Any) -> Any:
    """It, or where it does not split text as tokenizer.json says, what does.

    From version 5 on, transformers' classes of a family make normalizer and pre-tokenizer anew, as their family has
    them, and which class it is may hang on the model's type alone.
    """
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:
        return tokenizer
    plain = PreTrainedTokenizerFast.from_pretrained(directory)
    how = dict(add_special_tokens=False, verbose=False)
    same = all(plain(text, **how)["input_ids"] == tokenizer(text, **how)["input_ids"] for text in PROBES)
    return tokenizer if same else plain


def template_fault(tokenizer: Any) -> str | None:
    """What is wrong with the template that `chat` is going to take, in one line; None for a good one, and for none."""
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """The tag in which some templates wrap what the model writes."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True), lineno=line)

    if not tokenizer.chat_template:
        return None
    try:
        template = tokenizer.get_chat_template()
        Environment(extensions=[Generation, "jinja2.ext.loopcontrols"]).from_string(template)
    except Exception as error:  # the template's, or several without a default
        return one_line(error)
    return None
