"""One contestant in a process of its own: it loads a model once, then times a prompt and its continuation on demand.

    python -m benchmarks.cpu.contestant '{"engine": "fused", "path": DIRECTORY, "threads": 2, "context": 576}'

It prints its `Facts` as one line of JSON when the model is there and an `Answer` for every `Job` read from standard
input. Only the standard library is imported at the top: the interpreter of another program may have nothing else.
"""

import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from benchmarks.cpu.report import Engine, ModelSize
from benchmarks.machine import resident_bytes
from benchmarks.typed import from_json, to_json
from qlinear.process import peak_rss_bytes


@dataclass(frozen=True)
class Spec:
    """What to load. path: a checkpoint, a GGUF file or what a program has made of one; context: positions to have room
    for; kv_bits: of keys and values, which 8 makes int8 with scales; program: the directory of one that is none of an
    interpreter's packages.
    """

    engine: Engine
    path: str
    threads: int
    context: int
    kv_bits: int = 16
    program: str = ""


@dataclass(frozen=True)
class Weights:
    """What only our engine can say. all_bytes: as they lie in memory; read_bytes: those that a token reads."""

    all_bytes: int
    read_bytes: int
    size: ModelSize


@dataclass(frozen=True)
class Facts:
    """runtime_bytes: resident before loading."""

    load_s: float
    runtime_bytes: int
    weights: Weights | None


@dataclass(frozen=True)
class Job:
    """A prompt to read whole, and tokens to read after it, one at a time."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """token_s: the median over the continuation, None without one; bytes: resident now, and at most so far."""

    prompt_s: float
    token_s: float | None
    held_bytes: int
    peak_bytes: int


class Reader(Protocol):
    """A loaded model. Logits after the last token are there when a call returns."""

    facts: Facts

    def begin(self, tokens: tuple[int, ...]) -> None:
        """Read a text from its start."""

    def go_on(self, token: int) -> None:
        """Read one token more."""


def open_reader(spec: Spec) -> Reader:
    if spec.engine is Engine.LLAMA:
        from benchmarks.cpu.llama_cpp_reader import LlamaCppReader

        return LlamaCppReader(spec)
    if spec.engine is Engine.IK:
        from benchmarks.cpu.ik_reader import IkReader

        return IkReader(spec)
    if spec.engine is Engine.OPENVINO:
        from benchmarks.cpu.openvino_reader import OpenVinoReader

        return OpenVinoReader(spec)
    if spec.engine is Engine.GENAI:
        from benchmarks.cpu.genai_reader import GenaiReader

        return GenaiReader(spec)
    from benchmarks.cpu.our_reader import OurReader

    return OurReader(spec)


def do(job: Job, reader: Reader) -> Answer:
    start = time.perf_counter()
    reader.begin(job.prompt)
    times = [time.perf_counter()]
    for token in job.continuation:
        reader.go_on(token)
        times.append(time.perf_counter())
    steps = [after - before for before, after in zip(times, times[1:])]  # noqa: B905
    token_s = median(steps) if steps else None
    return Answer(times[0] - start, token_s, resident_bytes(), peak_rss_bytes())


def main() -> None:
    reader = open_reader(from_json(Spec, sys.argv[1]))
    print(to_json(reader.facts), flush=True)
    for line in sys.stdin:
        print(to_json(do(from_json(Job, line), reader)), flush=True)


if __name__ == "__main__":
    main()
