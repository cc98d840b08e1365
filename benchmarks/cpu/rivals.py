"""Other programs that run whole models, each by an interpreter that has it, and what they read of one."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu.ik_reader import commit
from benchmarks.cpu.llamas import gguf_read_bytes
from benchmarks.cpu.race import ROOT, WEIGHTS, Entry
from benchmarks.cpu.report import Engine, Way
from benchmarks.machine import available_bytes

# To make a directory of a checkpoint, times its bytes: a float model, and another's copy of that.
MAKING = 8


class NotMade(Exception):
    """Why a program has nothing to run, in one line."""


@dataclass(frozen=True)
class Rival:
    """option: that names its interpreter; module: what that has to have; package: whose version is told; install: how
    to have it; files: the module that makes a model's directory for it, run by its interpreter; None: it reads GGUF.
    """

    engine: Engine
    option: str
    module: str
    package: str
    install: str
    files: str | None = None

    @property
    def told(self) -> str:
        """Its name before a version."""
        name = self.engine.value
        return name if self.package == self.module == name.lower() else f"{name} through {self.package}"

    def version(self, python: str) -> str | None:
        """As an interpreter has it, or None; what else it prints comes before."""
        command = f"import {self.module}; from importlib.metadata import version; print(version('{self.package}'))"
        try:
            done = subprocess.run([python, "-c", command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return (done.stdout.split() or [None])[-1]

    def make(self, python: str, checkpoint: Path, directory: Path) -> None:
        """Raises `NotMade`."""
        needed, free = MAKING * _stored(checkpoint), available_bytes()
        if needed > free:
            raise NotMade(f"its model takes about {needed / 1e9:.0f} GB to make, and {free / 1e9:.0f} GB are free")
        command = [python, "-m", self.files, str(checkpoint.resolve()), str(directory.resolve())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotMade(f"{python} -m {self.files}: {last}")


@dataclass(frozen=True)
class Checkout(Rival):
    """One that is built from its sources. option: that names their directory."""

    @property
    def told(self) -> str:
        return self.engine.value

    def version(self, place: str) -> str | None:
        return commit(Path(place))


LLAMA = Rival(
    Engine.LLAMA,
    "llama_python",
    "llama_cpp",
    "llama-cpp-python",
    "CMAKE_ARGS=-DGGML_NATIVE=on pip install --no-binary llama-cpp-python llama-cpp-python",
)
OPENVINO = Rival(
    Engine.OPENVINO,
    "openvino_python",
    "openvino",
    "openvino",
    "pip install torch 'optimum-intel[openvino]' nncf",
    "benchmarks.cpu.openvino_files",
)
GENAI = Rival(
    Engine.GENAI,
    "genai_python",
    "onnxruntime_genai",
    "onnxruntime-genai",
    "pip install torch transformers onnx onnx-ir onnxruntime-genai",
    "benchmarks.cpu.genai_files",
)
IK = Checkout(
    Engine.IK,
    "ik_llama",
    "libllama.so",
    "ik_llama.cpp",
    "cmake -B build -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON && cmake --build build --target llama build_info",
)
RIVALS = (LLAMA, IK, OPENVINO, GENAI)


def of_gguf(path: Path, weights: str, engine: Engine = Engine.LLAMA) -> Entry:
    return Entry(Way(engine, weights), path, gguf_read_bytes(path))


def of_directory(rival: Rival, directory: Path, checkpoint: Path) -> Entry:
    """checkpoint: of the same shape."""
    return Entry(Way(rival.engine, "int4"), directory, _read_bytes(rival, directory, checkpoint))


def _read_bytes(rival: Rival, directory: Path, checkpoint: Path) -> int:
    """All of the files' but the embedding, of which a token reads one row."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return _stored(directory) - EMBEDDING[rival.engine](config)


def _stored(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir() if file.suffix in WEIGHTS)


def _openvino_embedding(config: dict) -> int:
    """A byte a weight, a scale of two and a zero point of one for each row. One that is tied is the head, too."""
    return 0 if config["tie_word_embeddings"] else config["vocab_size"] * (config["hidden_size"] + 3)


def _genai_embedding(config: dict) -> int:
    """In float32. One that is tied is the head, too."""
    return 0 if config["tie_word_embeddings"] else 4 * config["vocab_size"] * config["hidden_size"]


EMBEDDING: dict[Engine, Callable[[dict], int]] = {
    Engine.OPENVINO: _openvino_embedding,
    Engine.GENAI: _genai_embedding,
}
