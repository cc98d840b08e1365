"""The server as a process of its own, and what it is asked."""

import re
import socket
import subprocess
import sys
import time
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


@contextmanager
def serving_llama_cpp(program: str, file: str, slots: int, context: int, threads: int) -> Iterator[Server]:
    """llama.cpp's server, `context` tokens for each of its slots. Raises `RuntimeError` where it did not begin."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "-m", file, "--port", port, "-np", slots, "-c", slots * context, "-t", threads]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(list(map(str, command)), **quiet)
    try:
        yield Server(_wait_until_ready(f"http://127.0.0.1:{port}", process), Path(file).stem, process.pid)
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen) -> str:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=60).status_code == 200:
                return url
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("llama.cpp's server did not begin")
