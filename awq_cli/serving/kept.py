"""Answers that were given as items, for later requests to refer to: the last ones, in memory, until the server ends."""

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

from awq_cli.serving.refusals import Refusal

MOST_BYTES = 64 << 20  # of all, as JSON

Item = dict[str, Any]


@dataclass(frozen=True)
class _Turn:
    """What was asked, what was answered, and by which name the turn before it goes."""

    asked: list[Item]
    response: dict[str, Any]
    previous: str | None
    size: int


class Kept:
    """Changed by one thread alone; others may look things up meanwhile."""

    def __init__(self, most: int = MOST_BYTES):
        self._most, self._size = most, 0
        self._turns: dict[str, _Turn] = {}
        self._items: dict[str, Item] = {}
        self._oldest: deque[str] = deque()

    def keep(self, asked: list[Item], response: dict[str, Any]) -> None:
        """asked: as of `asked`."""
        size = len(json.dumps([asked, response]))
        self._turns[response["id"]] = _Turn(asked, response, response.get("previous_response_id"), size)
        self._items |= {item["id"]: item for item in response["output"]}
        self._oldest.append(response["id"])
        self._size += size
        while self._size > self._most:
            self._drop(self._oldest[0])

    def conversation(self, given: dict[str, Any]) -> tuple[list[Item], int]:
        """All that was said, up to the end of a request's own input, and how much of it was before that.

        Raises `Refusal` for what is not here.
        """
        turns: list[_Turn] = []
        name = given.get("previous_response_id")
        while name is not None:
            turns.append(self._turn(name, "previous_response_id"))
            name = turns[-1].previous
        before = [item for turn in reversed(turns) for item in (*turn.asked, *turn.response["output"])]
        return [*before, *self.asked(given)], len(before)

    def asked(self, given: dict[str, Any]) -> list[Any]:
        """Items of a request's own input, with those in their places that it refers to. Raises `Refusal`."""
        said = given.get("input")
        items = [{"role": "user", "content": said}] if isinstance(said, str) else said
        if not isinstance(items, list):
            return []
        return [self._meant(item, f"input[{number}]") for number, item in enumerate(items)]

    def find(self, name: str) -> dict[str, Any]:
        """A response. Raises `Refusal`."""
        return self._turn(name, None).response

    def forget(self, name: str) -> None:
        """Raises `Refusal` where there is none."""
        self._turn(name, None)
        self._drop(name)

    def _drop(self, name: str) -> None:
        turn = self._turns.pop(name)
        self._oldest.remove(name)
        self._size -= turn.size
        for item in turn.response["output"]:
            self._items.pop(item["id"])

    def _turn(self, name: Any, parameter: str | None) -> _Turn:
        turn = self._turns.get(name) if isinstance(name, str) else None
        if turn is None:
            raise _not_here(f"Response {name!r}", parameter)
        return turn

    def _meant(self, item: Any, where: str) -> Any:
        # A reference may come without its type.
        named = isinstance(item, dict) and (item.get("type") == "item_reference" or item.keys() == {"id"})
        if not named:
            return item
        meant = self._items.get(item.get("id")) if isinstance(item.get("id"), str) else None
        if meant is None:
            raise _not_here(f"Item {item.get('id')!r}", where)
        return meant


def _not_here(what: str, parameter: str | None) -> Refusal:
    told = "is not here: a server keeps its last ones until it ends; send the whole conversation as input"
    return Refusal(404, f"{what} {told}", parameter, "not_found")
