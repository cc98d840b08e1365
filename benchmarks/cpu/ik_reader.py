"""A GGUF file in ik_llama.cpp, for the contestant: its own shared libraries, through ik_reader.cpp."""

import ctypes
import re
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.cpu.contestant import Facts, Spec
from benchmarks.machine import resident_bytes

BATCH = 512  # tokens of a prompt in one call
HEADERS = ("include", "ggml/include")
LIBRARIES = ("build/src", "build/ggml/src")
COMMIT = re.compile(r'LLAMA_COMMIT = "(\w+)"')


def commit(checkout: Path) -> str | None:
    """That a checkout with a shared build in `build` was built from, or None where there is no such build."""
    try:
        told = (checkout / "common" / "build-info.cpp").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = COMMIT.search(told)
    return found[1] if found and (checkout / LIBRARIES[0] / "libllama.so").exists() else None


def build(checkout: Path, compiler: str = "c++") -> ctypes.CDLL:
    """Compile ik_reader.cpp against it and load it."""
    source = Path(__file__).with_name("ik_reader.cpp")
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", *(f"-I{checkout / name}" for name in HEADERS)]
    places = [str(checkout / name) for name in LIBRARIES]
    flags += [f"{option}{place}" for place in places for option in ("-L", "-Wl,-rpath,")]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "reader.so"
        command = [compiler, str(source), *flags, "-lllama", "-lggml", "-o", str(target)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(target))


class IkReader:
    """`benchmarks.cpu.contestant.Reader`. Weights are repacked as they are read, which is its best setting."""

    def __init__(self, spec: Spec):
        self._native = build(Path(spec.program))
        self._native.ik_open.restype = ctypes.c_void_p
        before, start = resident_bytes(), time.perf_counter()
        opened = self._native.ik_open(spec.path.encode(), spec.threads, spec.context, BATCH, spec.kv_bits)
        if opened is None:
            raise SystemExit(f"ik_llama.cpp does not open {spec.path}")
        self._opened = ctypes.c_void_p(opened)
        self.facts = Facts(time.perf_counter() - start, before, None)

    def begin(self, tokens: tuple[int, ...]) -> None:
        for first in range(0, len(tokens), BATCH):
            self._read(tokens[first : first + BATCH], first == 0)

    def go_on(self, token: int) -> None:
        self._read((token,), False)

    def _read(self, tokens: tuple[int, ...], begin: bool) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        if self._native.ik_read(self._opened, array, len(tokens), begin) != 0:
            raise SystemExit("llama_decode failed")
