"""Open a model's tokenizer, and say what is wrong with its chat template."""

from pathlib import Path
from typing import Any

from qlinear.errors import ModelError, one_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def open_tokenizer(directory: Path, trust_remote_code: bool) -> Any:
    """Raises `ModelError` where there is none, and whatever a library makes of one that is damaged."""
    from transformers import AutoTokenizer

    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"{directory} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    tokenizer.decode(tokenizer("a b")["input_ids"])  # some of its settings are not looked at before
    return tokenizer


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
