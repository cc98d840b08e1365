"""Whether a tokenizer's chat template can be compiled; nothing of it is run."""

from typing import Any

from qlinear.errors import one_line


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
