"""Texts from the hub, by way of the `datasets` library: rows of a split."""

import importlib.util
from collections.abc import Callable
from itertools import islice

from qlinear.errors import AwqError


def read_rows(read: Callable[[], list[str]], what: str, kind: type[AwqError], instead: str) -> list[str]:
    """What `read` fetches. Raises `kind` in one line that starts with `what`; instead: what to do without a network."""
    if importlib.util.find_spec("datasets") is None:
        raise kind(f"{what} comes from the hub and needs the datasets library; install it with: pip install datasets")
    try:
        return read()
    except Exception as error:  # the hub's client raises its own errors, and those of every layer below it
        raise kind(f"{what} could not be fetched ({type(error).__name__}); without a network, {instead}") from error


def split_rows(path: str, config: str | None, split: str, limit: int | None = None) -> Callable[[], list[str]]:
    """A reader of the `text` of all rows of a split, or of its first `limit`, which are then all that is fetched."""

    def read() -> list[str]:
        from datasets import load_dataset

        rows = load_dataset(path, config, split=split, streaming=limit is not None)
        return [row["text"] for row in islice(rows, limit)]

    return read
