"""Which models are run end to end, and the files that each contestant loads, made where they are missing."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import run_awq
from benchmarks.cpu.llamas import LLAMAS, write_checkpoint, write_gguf
from benchmarks.cpu.moes import MOES
from benchmarks.cpu.race import Entry
from benchmarks.cpu.report import Engine, Way
from benchmarks.cpu.rivals import RIVALS, NotMade, of_directory, of_gguf
from checkpoints.local import EMBEDDED
from quantization.recipe import Awq, Recipe

SMOLLM2 = "smollm2"
EMBEDDED_NAME = "smollm2-135m-instruct"
SHAPES = LLAMAS | MOES  # of models with random weights
MODELS = (*SHAPES, SMOLLM2)
GROUP_SIZE = 128  # of the models with random weights


def entries(model: str, work: Path, programs: Mapping[Engine, str], say: Callable[[str], object]) -> list[Entry]:
    """What to run, ours first. work: where the files are kept; programs: those to be compared with, as `Race` has
    them; say: is told of one that is left out, as it cannot make its own.
    """
    found = _smollm2(work) if model == SMOLLM2 else _random(model, work)
    plain = next(entry.path for entry in found if entry.way.weights in ("w4", "w4, head bf16"))
    for rival in RIVALS:
        if rival.engine not in programs:
            continue
        if rival.files is None:
            found.append(_gguf(model, work, rival.engine))
        elif model not in MOES:
            make = partial(rival.make, programs[rival.engine], plain)
            try:
                found.append(of_directory(rival, _made(work / f"{model}-{rival.module}", make), plain))
            except NotMade as reason:
                say(f"{model}: {rival.engine.value} is left out: {reason}")
    return found


def _random(model: str, work: Path) -> list[Entry]:
    """All linears and the head quantized. 3 bits, or the modules, are left out where models hardly fit into memory."""

    def checkpoint(bits: int) -> Path:
        made = work / f"{model}-w{bits}"
        return _made(made, lambda path: write_checkpoint(SHAPES[model], bits, GROUP_SIZE, path))

    four = checkpoint(4)
    entries = [Entry(Way(Engine.FUSED, "w4"), four), Entry(Way(Engine.INT8, "w4"), four)]
    if model == "1.1b":
        entries.append(Entry(Way(Engine.FUSED, "w3"), checkpoint(3)))
    return entries + [Entry(Way(Engine.MODULES, "w4"), four)] * (model in LLAMAS)


def _smollm2(work: Path) -> list[Entry]:
    """The embedded model, rounded plainly, which is soon done and runs as fast as any other codes."""

    def checkpoint(name: str, lm_head: bool) -> Path:
        recipe = Recipe(w_bit=4, awq=Awq.NONE, lm_head=lm_head)
        return _made(work / name, lambda path: run_awq.quantize(EMBEDDED_NAME, str(path), recipe))

    head, plain = checkpoint("smollm2-w4-head", True), checkpoint("smollm2-w4", False)
    return [
        Entry(Way(Engine.FUSED, "w4, head w4"), head),
        Entry(Way(Engine.INT8, "w4, head w4"), head),
        Entry(Way(Engine.FUSED, "w4, head bf16"), plain),
        Entry(Way(Engine.MODULES, "w4, head w4"), head),
    ]


def _gguf(model: str, work: Path, engine: Engine) -> Entry:
    if model == SMOLLM2:
        package, file = EMBEDDED[EMBEDDED_NAME]
        found = next(entry for entry in distribution(package).files if entry.name == file)
        path, weights = Path(found.locate()), "Q4_1"
    else:
        path, weights = _made(work / f"{model}.gguf", lambda path: write_gguf(SHAPES[model], path)), "Q4_0"
    return of_gguf(path, weights, engine)


def _made(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made first if it is not there. What is half done has another name."""
    if not path.exists():
        partial = path.with_name(f"partial-{path.name}")
        make(partial)
        partial.rename(path)
    return path
