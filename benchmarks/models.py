"""Which models are run end to end, and the files that each contestant loads, made where they are missing."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

from benchmarks.decode import ROOT, Entry
from benchmarks.shapes import SHAPES, gguf_read_bytes, write_checkpoint, write_gguf
from checkpoints.pretrained import EMBEDDED

MODELS = (*SHAPES, "smollm2")


def entries(model: str, work: Path, llama: bool) -> list[Entry]:
    """What to run, ours first. work: where the files are kept; llama: whether llama.cpp is there to be compared."""
    ours = _smollm2(work) if model == "smollm2" else _shape(model, work)
    return ours + ([_llama(model, work)] if llama else [])


def _shape(shape: str, work: Path) -> list[Entry]:
    """All linears and the head quantized. 3 bits are left out where two models hardly fit into memory."""

    def checkpoint(bits: int) -> Path:
        return _made(work / f"{shape}-w{bits}", lambda path: write_checkpoint(shape, bits, 128, path))

    four = checkpoint(4)
    entries = [Entry("fused", "w4", 4, 128, four)]
    if shape != "7b":
        entries.append(Entry("fused", "w3", 3, 128, checkpoint(3)))
    return [*entries, Entry("modules", "w4", 4, 128, four)]


def _smollm2(work: Path) -> list[Entry]:
    """The embedded model, as `--task quantize` makes it; rounded plainly, which is soon done and runs as fast."""

    def checkpoint(name: str, *options: str) -> Path:
        command = [sys.executable, "run_awq.py", "--task", "quantize", "--w_bit", "4", "--awq", "none", *options]
        run = subprocess.run
        return _made(
            work / name,
            lambda path: run([*command, "--output", str(path)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL),
        )

    head, plain = checkpoint("smollm2-w4-head", "--lm_head"), checkpoint("smollm2-w4")
    return [
        Entry("fused", "w4, head w4", 4, 64, head),
        Entry("fused", "w4, head bf16", 4, 64, plain),
        Entry("modules", "w4, head w4", 4, 64, head),
    ]


def _llama(model: str, work: Path) -> Entry:
    if model == "smollm2":
        package, file = EMBEDDED["smollm2-135m-instruct"]
        found = next(entry for entry in distribution(package).files if entry.name == file)
        path, kind = Path(found.locate()), "Q4_1"
    else:
        path, kind = _made(work / f"{model}.gguf", lambda path: write_gguf(model, path)), "Q4_0"
    return Entry("llama.cpp", kind, 4, 32, path, gguf_read_bytes(path))


def _made(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made first if it is not there. What is half done has another name."""
    if not path.exists():
        partial = path.with_name(f"partial-{path.name}")
        make(partial)
        partial.rename(path)
    return path
