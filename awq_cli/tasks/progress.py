"""What a task tells whoever watches it, while it runs. Tasks never print."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    def note(self, text: str) -> None:
        """One line the user should know: a choice made for them, something skipped."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """The items again, while a bar with the time left moves."""

    def partial(self, item: Any) -> None:
        """A part of the result that is complete already."""


class Silent:
    """Nobody watches."""

    def note(self, text: str) -> None: ...

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        yield from items

    def partial(self, item: Any) -> None: ...
