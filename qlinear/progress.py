"""What long work tells whoever watches it. Part of the ground floor, which every room may import.

A watcher is any callable that takes an event; nothing below the command prints.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Note:
    """One line the user should know: a choice made for them, something skipped. Fields stand in it in backquotes."""

    text: str


@dataclass(frozen=True)
class Step:
    """`done` of `total` things of one kind (blocks, windows) are done; told before the first and after each."""

    what: str
    done: int
    total: int


Watcher = Callable[[Note | Step], None]


def silent(event: Note | Step) -> None:
    """Nobody watches."""


def steps(items: Iterable[T], total: int, what: str, watch: Watcher) -> Iterator[T]:
    """The items again, each told of when the next is asked for."""
    watch(Step(what, 0, total))
    for done, item in enumerate(items, 1):
        yield item
        watch(Step(what, done, total))
