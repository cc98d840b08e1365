"""What a request asks of a model's thoughts: whether they are told apart, and how much of them there is to be."""

from typing import Any

from awq_cli.serving.fields import wrong
from awq_cli.serving.refusals import Refusal
from engine.thoughts import marks_of

FORMATS = ("auto", "none", "deepseek")  # as llama.cpp's server calls them; the first and the last are the same here
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


def told_apart(given: dict[str, Any]) -> bool:
    """Whether a request wants thoughts beside the answer. Raises `Refusal`."""
    wanted = given.get("reasoning_format")
    if wanted is not None and wanted not in FORMATS:
        raise wrong("reasoning_format", f"has to be one of {', '.join(FORMATS)}")
    return wanted != "none"


def effort_shown(given: dict[str, Any], template: str) -> dict[str, Any]:
    """What a template is to see of `reasoning_effort`, if it looks.

    Raises `Refusal` where a model always thinks and is not to, or never does and is to.
    """
    effort = given.get("reasoning_effort")
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise wrong("reasoning_effort", f"has to be one of {', '.join(EFFORTS)}")
    shown = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    if known := {name: value for name, value in shown.items() if name in template}:
        return known
    if (effort == "none") != (marks_of(template) is None):
        why = "this model's chat template has no say in that; leave it out"
        raise Refusal(400, f"reasoning_effort: {why}", "reasoning_effort", "unsupported_parameter")
    return {}
