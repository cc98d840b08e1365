"""The rooms of the house know only those below them, and `--help` has no time for torch."""

import ast
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Room -> the rooms it may import, beside itself. `run_awq` is the API: a room of one file.
BELOW = {
    "qlinear": set(),
    "architectures": {"qlinear"},
    "engine": {"architectures", "qlinear"},
    "checkpoints": {"architectures", "qlinear"},
    "scales": {"architectures", "qlinear"},
    "quantization": {"engine", "checkpoints", "scales", "architectures", "qlinear"},
    "run_awq": {"quantization", "engine", "checkpoints", "scales", "architectures", "qlinear"},
}
BELOW["awq_cli"] = {"run_awq", *BELOW["run_awq"]}
# The API's file is also the command: what follows `if __name__ == "__main__"` is no part of the API.
SCRIPT = ("run_awq", "awq_cli.main")
OUTSIDE = ("tests", "benchmarks")  # no room imports these
HEAVY = ("torch", "transformers", "datasets", "numpy", "safetensors", "gguf", "rich", "prompt_toolkit")
# Room -> libraries that none of its files may load when it is imported.
LATE = {
    "qlinear": {"transformers", "safetensors", "gguf", "datasets", "click", "rich"},
    "architectures": {"transformers", "safetensors", "gguf", "datasets", "click", "rich"},
    "engine": {"transformers", "safetensors", "gguf", "datasets", "click", "rich"},
    "scales": {"transformers", "safetensors", "gguf", "datasets", "click", "rich"},
    "checkpoints": {"transformers", "gguf", "datasets", "click", "rich"},
    "quantization": {"transformers", "gguf", "datasets", "click", "rich"},
    "run_awq": {"torch", "transformers", "safetensors", "gguf", "datasets", "click", "rich"},
}
# Loaded before torch is: what the command and the API are known by.
EARLY = (
    "run_awq", "awq_cli.main", "awq_cli.options", "quantization.recipe", "quantization.methods",
    "qlinear.backends.registry", "qlinear.errors", "qlinear.progress", "qlinear.sizes", "qlinear.files",
)  # fmt: skip


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]


MODULES = {module_name(file): file for room in BELOW for file in files_of(room)}


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
    return {name for name in found if name in MODULES or room_of(name) in OUTSIDE}


def room_of(module: str) -> str:
    return module.split(".")[0]


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of the project it imports."""
    found = {
        name: imported_by(ast.parse(file.read_text(encoding="utf-8")), name, file.name == "__init__.py") - {name}
        for name, file in MODULES.items()
    }
    found[SCRIPT[0]].discard(SCRIPT[1])
    return found


def upward(found: dict[str, set[str]]) -> list[str]:
    pairs = [(name, other) for name, others in found.items() for other in others]
    return sorted(
        f"{name} -> {other}"
        for name, other in pairs
        if room_of(other) != room_of(name) and room_of(other) not in BELOW[room_of(name)]
    )


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
    assert {room_of(name) for name in found} == set(BELOW)
    assert "qlinear.grid" in found["qlinear.packing"] and "scales.search" in found["scales.awq"]
    assert {"run_awq", "quantization.recipe"} <= found["awq_cli.running"]
    assert "engine.model" in found["run_awq"]


def test_imports_point_one_way():
    assert upward(arrows()) == []


def test_no_import_leads_back():
    assert circles(arrows()) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("qlinear.grid", "from scales.awq import quantize_block"),
        ("qlinear.grid", "import checkpoints.writer"),
        ("qlinear.grid", "from awq_cli import finding"),
        ("qlinear.grid", "def f():\n    from architectures import family"),
        ("scales.awq", "if True:\n    import awq_cli.main as m"),
        ("qlinear.grid", "from benchmarks import aie"),
        ("qlinear.grid", "import tests.tiny"),
        ("qlinear.grid", "from ..scales import awq"),
        ("engine.model", "from checkpoints import quantized"),
        ("checkpoints.writer", "from engine.model import Model"),
        ("scales.zoo", "from checkpoints.sources import read_json"),
        ("quantization.work", "import run_awq"),
        ("run_awq", "from awq_cli.console import Console"),
    ],
)
def test_an_arrow_that_points_up_is_seen(room, source):
    found = imported_by(ast.parse(source), room, package=False)
    assert upward({room: found}) != []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", EARLY)
def test_what_comes_before_torch_loads_no_large_library(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert fresh_python(code) == "[]"


@pytest.mark.parametrize("room", LATE)
def test_a_room_is_entered_without_the_libraries_that_it_may_never_need(room):
    names = [name for name in MODULES if room_of(name) == room]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print(sorted(name for name in {sorted(LATE[room])} if name in sys.modules))
"""
    assert fresh_python(code) == "[]"


def test_importing_the_rooms_prints_nothing_and_touches_no_state():
    """No seed, no thread count, no environment, no current directory."""
    names = list(chain(MODULES))
    code = f"""
import importlib, os, torch
import transformers
before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), os.getcwd(), dict(os.environ)
for name in {names}:
    importlib.import_module(name)
after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), os.getcwd(), dict(os.environ)
assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
"""
    assert fresh_python(code) == ""
