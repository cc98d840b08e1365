"""The server as a process of its own, and what it is asked."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import bytes_of

COMMAND = Path(__file__).parents[2] / "run_awq.py"


@dataclass(frozen=True)
class Server:
    """url: of the API; name: of its model; pid: of its process."""

    url: str
    name: str
    pid: int

    def resident_bytes(self) -> int:
        return bytes_of(Path(f"/proc/{self.pid}/status").read_text(), "VmRSS")

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    def body(self, prompt: str, tokens: int, stream: bool) -> dict[str, Any]:
        return {"model": self.name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}


@contextmanager
def serving(checkpoint: Path, *arguments: object) -> Iterator[Server]:
    """Ended with SIGTERM; raises `RuntimeError` where it did not begin, or did not end well."""
    command = [sys.executable, COMMAND, "--task", "serve", "--checkpoint", checkpoint, "--port", 0, *arguments]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"(http://\S+)/v1$", process.stdout.readline())
        if found is None:
            raise RuntimeError("the server did not begin")
        yield Server(found[1], checkpoint.name, process.pid)
        process.terminate()
        if process.wait(timeout=60) != 0:
            raise RuntimeError(f"the server ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
