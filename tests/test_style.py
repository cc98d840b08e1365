"""What DESIGN asks of every source, where a reader of the source can count it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "qlinear",
    "architectures",
    "engine",
    "checkpoints",
    "scales",
    "quantization",
    "awq_cli",
    "benchmarks",
    "tests",
)
MOST_LINES, MOST_IN_A_FUNCTION, MOST_ARGUMENTS = 300, 50, 6
PRODUCT = ROOMS[:-2]
# A torch operator takes the fields of a weight one by one, as the C struct it stands for has them.
STRUCTS = {("qlinear/backends/cpu/backend.py", "qlinear"), ("qlinear/backends/cpu/backend.py", "_")}

SOURCES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))] + [ROOT / "run_awq.py"]


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def arguments(function: ast.FunctionDef) -> int:
    """Those that may be given by place; options that have to be named cannot be mistaken for each other."""
    given = [*function.args.posonlyargs, *function.args.args]
    return len([argument for argument in given if argument.arg not in ("self", "cls")])


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 150 and any(arguments(function) == 6 for file in SOURCES for function in functions(file))


def test_files_are_short():
    lines = {named(file): len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES}
    native = sorted((ROOT / "qlinear" / "csrc").rglob("*.[ch]*"))
    lines |= {named(file): len(file.read_text(encoding="utf-8").splitlines()) for file in native}
    assert native and {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_functions_are_short():
    spans = [(named(file), f.name, f.end_lineno - f.lineno + 1) for file in SOURCES for f in functions(file)]
    assert [span for span in spans if span[2] > MOST_IN_A_FUNCTION] == []


def test_functions_take_few_arguments():
    counts = [(named(file), f.name, arguments(f)) for file in SOURCES for f in functions(file)]
    assert [count for count in counts if count[2] > MOST_ARGUMENTS and count[:2] not in STRUCTS] == []


def texts(file: Path) -> Iterator[ast.Constant]:
    """Every string of a source but its docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return (node for node in strings if id(node) not in prose)


@pytest.mark.parametrize("room", [room for room in PRODUCT if room != "awq_cli"])
def test_only_the_command_knows_its_options(room):
    """A text below it names a field of the Python API, `overwrite` say, which the command spells as its option."""
    found = [
        (named(file), text.lineno, text.value)
        for file in sorted((ROOT / room).rglob("*.py"))
        for text in texts(file)
        if re.search(r"(?<![\w-])--[a-z]", text.value) and "pip install" not in text.value
    ]
    assert found == []
