"""What is said of a request in a chat, said of the request of another API that it was made of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from awq_cli.serving.refusals import Refusal


def renamed(refusal: Refusal, names: Mapping[str, str], places: Sequence[str]) -> Refusal:
    """names: of fields in that request, by those in a chat; places: in it, by numbers of messages in the chat."""
    if refusal.parameter is None:
        return refusal
    field = re.match(r"\w+(?:\[(\d+)\])?", refusal.parameter)
    old = field[0] if field else refusal.parameter
    new = places[int(field[1])] if field and field[1] and old.startswith("messages") else names.get(old, old)
    return replace(
        refusal, message=refusal.message.replace(old, new), parameter=new + refusal.parameter.removeprefix(old)
    )
