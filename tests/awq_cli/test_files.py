"""The result files: what JSON has no word for."""

import json
import math
from dataclasses import dataclass

import pytest

from awq_cli.files import check_results, write_files
from qlinear.errors import OptionError


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


def test_a_result_takes_nobodys_place(tmp_path):
    text, link = tmp_path / "text.txt", tmp_path / "link.txt"
    text.write_text("mine")
    link.symlink_to(text)
    new = str(tmp_path / "new.json")
    check_results({"--json": new, "--csv": None}, [str(text), "wikitext2", f"@{text}"])
    check_results({"--json": str(text), "--csv": new}, ["wikitext2"])
    for read in (str(text), f"@{text}", str(link)):
        with pytest.raises(OptionError, match=f"^--json {text} is a file that is read; give the result another name$"):
            check_results({"--json": str(text), "--csv": None}, [read])
    with pytest.raises(OptionError, match="^--json and --csv name one file; give two names$"):
        check_results({"--json": new, "--csv": new}, [])
    check_results({"--json": "/dev/stdout", "--csv": "/dev/stdout"}, [])


def test_the_text_of_a_perplexity_is_not_overwritten(run, text_file):
    before = text_file.read_text()
    done = run("--task", "perplexity", "--checkpoint", "c", "--dataset", text_file, "--json", text_file)
    assert done.error.endswith("is a file that is read; give the result another name")
    assert text_file.read_text() == before
