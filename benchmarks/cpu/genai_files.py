"""Run by an interpreter with onnxruntime-genai: CHECKPOINT DIRECTORY. A random model of its shape in 4 bits for it."""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.cpu.random_model import write_random

# Activations are rounded to int8, which is the fastest that it has, and the head reads the last token alone.
HOW = ("block_size=128", "accuracy_level=4", "prune_lm_head=true")


def main(checkpoint: Path, directory: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        write_random(checkpoint, Path(made, "float"))
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", "int4"]
        places = ["-i", f"{made}/float", "-o", str(directory), "-c", f"{made}/cache"]
        # Not here: it has modules that are called as ours are.
        subprocess.run([*builder, *places, "--extra_options", *HOW], check=True, cwd=made)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
