"""Answers that were given as items, for later requests to refer to: the last ones, in memory, until the server ends."""

import json
import threading
from dataclasses import dataclass
from typing import Any

from awq_cli.serving.refusals import Refusal

MOST_BYTES = 64 << 20  # of all

Item = dict[str, Any]


@dataclass(frozen=True)
class _Turn:
    """told: what was asked and what was answered, as JSON: read, it may take twenty times as much; items: the names of
    those that were answered; previous: that of the turn before.
    """

    told: bytes
    items: tuple[str, ...]
    previous: str | None

    def read(self) -> tuple[list[Item], dict[str, Any]]:
        asked, response = json.loads(self.told)
        return asked, response


class Kept:
    """Of any thread. What was not asked for longest goes first."""

    def __init__(self, most: int = MOST_BYTES):
        self._most, self._size = most, 0
        self._turns: dict[str, _Turn] = {}  # the one that was asked for last comes last
        self._items: dict[str, str] = {}  # by their names, those of the responses that they are of
        self._lock = threading.RLock()

    def keep(self, asked: list[Item], response: dict[str, Any]) -> None:
        """asked: as of `asked`."""
        name, items = response["id"], tuple(item["id"] for item in response["output"])
        told = json.dumps([asked, response]).encode()
        with self._lock:
            self._turns[name] = _Turn(told, items, response.get("previous_response_id"))
            self._items |= dict.fromkeys(items, name)
            self._size += len(told)
            while self._size > self._most:
                self._drop(next(iter(self._turns)))

    def conversation(self, given: dict[str, Any]) -> tuple[list[Item], int]:
        """All that was said, up to the end of a request's own input, and how much of it was before that.

        Raises `Refusal` for what is not here.
        """
        turns: list[_Turn] = []
        name = given.get("previous_response_id")
        with self._lock:
            while name is not None:
                turns.append(self._turn(name, "previous_response_id"))
                name = turns[-1].previous
        told = [turn.read() for turn in reversed(turns)]
        before = [item for asked, response in told for item in (*asked, *response["output"])]
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
        _, response = self._turn(name, None).read()
        return response

    def forget(self, name: str) -> None:
        """Raises `Refusal` where there is none."""
        with self._lock:
            self._turn(name, None)
            self._drop(name)

    def _drop(self, name: str) -> None:
        turn = self._turns.pop(name)
        self._size -= len(turn.told)
        for item in turn.items:
            self._items.pop(item)

    def _turn(self, name: Any, parameter: str | None) -> _Turn:
        with self._lock:
            turn = self._turns.pop(name, None) if isinstance(name, str) else None
            if turn is None:
                raise _not_here(f"Response {name!r}", parameter)
            self._turns[name] = turn
            return turn

    def _meant(self, item: Any, where: str) -> Any:
        kind = item.get("type") if isinstance(item, dict) else "another"
        alone = kind is None and {*item} - {"type"} == {"id"}  # a reference may come without its type
        if kind != "item_reference" and not alone:
            return item
        named = item.get("id")
        with self._lock:
            of = self._items.get(named) if isinstance(named, str) else None
            if of is None:
                raise _not_here(f"Item {named!r}", where)
            turn = self._turn(of, where)
        _, response = turn.read()
        return response["output"][turn.items.index(named)]


def _not_here(what: str, parameter: str | None) -> Refusal:
    told = "is not here: a server keeps its last ones until it ends; send the whole conversation as input"
    code = "previous_response_not_found" if parameter == "previous_response_id" else "not_found"
    return Refusal(404, f"{what} {told}", parameter, code)
