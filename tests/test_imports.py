"""The rooms of the house know only those below them, and `--help` has no time for torch."""

import ast
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("qlinear", "scales", "checkpoints", "awq_cli")  # from the lowest floor up
OUTSIDE = ("tests", "benchmarks", "run_awq")  # no room imports these
HEAVY = ("torch", "transformers", "datasets", "numpy", "safetensors", "gguf", "rich")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))}


def imported_by(tree: ast.AST, here: str, package: bool) -> set[str]:
    """Every module of this project that a source imports, anywhere in it, functions included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here.split(".") if package else here.split(".")[:-1]
            origin = ".".join(base[: len(base) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (origin, node.module)))
            found.add(origin)
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    return {name for name in found if name in MODULES or name.split(".")[0] in OUTSIDE}


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of the project it imports."""
    return {
        name: imported_by(ast.parse(file.read_text(encoding="utf-8")), name, file.name == "__init__.py") - {name}
        for name, file in MODULES.items()
    }


def floor(module: str) -> int:
    room = module.split(".")[0]
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def upward(found: dict[str, set[str]]) -> list[str]:
    pairs = [(name, other) for name, others in found.items() for other in others]
    return sorted(f"{name} -> {other}" for name, other in pairs if floor(other) > floor(name))


def circles(found: dict[str, set[str]]) -> list[str]:
    """Modules from which a way leads back to themselves. A package's own file counts only for what it imports."""

    def reach(start: str) -> set[str]:
        seen, ahead = set(), set(found[start])
        while ahead:
            name = ahead.pop()
            seen.add(name)
            ahead |= found.get(name, set()) - seen
        return seen

    return sorted(name for name in found if name in reach(name))


def test_there_is_something_to_look_at():
    found = arrows()
    assert {name.split(".")[0] for name in found} == set(ROOMS)
    assert "qlinear.grid" in found["qlinear.packing"] and "scales.search" in found["scales.awq"]
    assert {"checkpoints.store", "awq_cli.paths"} <= found["awq_cli.tasks.runner"]


def test_imports_point_one_way():
    assert upward(arrows()) == []


def test_no_import_leads_back():
    assert circles(arrows()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from scales.awq import quantize_block",
        "import checkpoints.store",
        "from awq_cli import paths",
        "def f():\n    from scales import fold",
        "if True:\n    import awq_cli.main as m",
        "from benchmarks.aie import tables",
        "import tests.tiny",
        "from ..scales import awq",
    ],
)
def test_an_arrow_that_points_up_is_seen(source):
    found = imported_by(ast.parse(source), "qlinear.grid", package=False)
    assert upward({"qlinear.grid": found}) != []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_is_imported_without_the_heavy_libraries():
    code = f"import sys, awq_cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    assert fresh_python(code) == "[]"


def test_importing_the_rooms_prints_nothing_and_touches_no_state():
    """No seed, no thread count, no environment, no current directory."""
    names = list(chain(MODULES))
    code = f"""
import importlib, os, torch
import datasets, transformers
before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), os.getcwd(), dict(os.environ)
for name in {names}:
    importlib.import_module(name)
after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), os.getcwd(), dict(os.environ)
assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
"""
    assert fresh_python(code) == ""
