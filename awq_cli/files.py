"""The result files that are asked for: JSON and CSV."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlinear.errors import OptionError
from qlinear.files import is_written_through, json_text, why_not_writable, write_text_whole


def check_results(results: Mapping[str, str | None], read: Iterable[str]) -> None:
    """Before hours of work: whether results can be written where their options ask for it, and in nobody's place.

    read: what may name files that are read, some with an @ before. Raises `OptionError`.
    """
    places = {option: Path(path) for option, path in results.items() if path is not None}
    sources = {os.path.realpath(text.removeprefix("@")) for text in read}
    for option, path in places.items():
        reason = why_not_writable(path)
        if reason is not None:
            raise OptionError(f"{option} {path} cannot be written: {reason}")
        if path.is_file() and os.path.realpath(path) in sources:
            raise OptionError(f"{option} {path} is a file that is read; give the result another name")
    files = [os.path.realpath(path) for path in places.values() if not is_written_through(path)]
    if len(set(files)) < len(files):
        raise OptionError(f"{' and '.join(places)} name one file; give two names")


def write_files(result: Any, json_file: str | None, csv_file: str | None) -> None:
    """The whole result as JSON, a benchmark's rows as CSV; each complete or not there. Raises `OptionError`."""
    if json_file is not None:
        _write("--json", json_file, json_text(asdict(result)) + "\n")
    if csv_file is not None:
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        rows = [_flat(asdict(row)) for row in result.rows]
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
        _write("--csv", csv_file, table.getvalue())


def _write(option: str, path: str, text: str) -> None:
    try:
        write_text_whole(Path(path), text)
    except BrokenPipeError:  # it is the standard output, which nobody reads any more
        raise
    except OSError as error:
        raise OptionError(f"{option} {path} cannot be written: {error.strerror}") from error


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row's own fields, then those of its modelled part, if it has one, under their names with `modelled_` before."""
    modelled = row.pop("modelled", None) or {}
    return row | {f"modelled_{name}": value for name, value in modelled.items()}
