"""The result files: what JSON has no word for."""

import json
import math
from dataclasses import dataclass

import pytest

from awq_cli.files import write_files


@dataclass(frozen=True)
class Row:
    figures: tuple[float, ...]
    by_name: dict[str, float]


@dataclass(frozen=True)
class Result:
    value: float
    rows: list[Row]
    exact: bool = True


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_null(tmp_path, value):
    result = Result(value, [Row((1.5, value), {"a": value, "b": 2.0})])
    write_files(result, str(tmp_path / "r.json"), None)

    def refuse(constant: str):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert found == {"value": None, "rows": [{"figures": [1.5, None], "by_name": {"a": None, "b": 2.0}}], "exact": True}
