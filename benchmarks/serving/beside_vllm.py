"""One checkpoint behind two servers, vLLM's and ours: OpenAI's client asks both, and greedy answers are compared."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import OpenAI

from benchmarks.interop.checkpoints import PROMPTS
from benchmarks.serving.server import serving
from benchmarks.table import Table

BEGINS_S = 600.0


@dataclass(frozen=True)
class Compared:
    """ours, theirs: what was written after the prompt."""

    prompt: str
    ours: str
    theirs: str

    @property
    def same(self) -> bool:
        return self.ours == self.theirs


@contextmanager
def vllm_serving(python: Path, checkpoint: Path, shards: int) -> Iterator[str]:
    """The address of vLLM's API. python: of an environment with vLLM. Raises `RuntimeError` where it does not begin."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint.resolve(), "--port", port]
    command += ["--host", "127.0.0.1", "--max-model-len", 512, "--enforce-eager", "--tensor-parallel-size", shards]
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": ""}
    process = subprocess.Popen(
        list(map(str, command)), env={**os.environ, **quiet}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(address: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + BEGINS_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise RuntimeError(f"vLLM did not begin within {BEGINS_S:.0f} s, or ended: {process.poll()}")


def _answers(url: str, tokens: int) -> list[str]:
    with OpenAI(base_url=url, api_key="none", timeout=600) as client:
        (model,) = client.models.list()
        asked = dict(model=model.id, max_tokens=tokens, temperature=0)
        return [client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in PROMPTS]


def compare(checkpoint: Path, python: Path, tokens: int, shards: int) -> list[Compared]:
    with serving(checkpoint, "--context", 512) as server:
        ours = _answers(f"{server.url}/v1", tokens)
    with vllm_serving(python, checkpoint, shards) as url:
        theirs = _answers(url, tokens)
    return [Compared(*row) for row in zip(PROMPTS, ours, theirs, strict=True)]


def table(rows: list[Compared], title: str) -> Table:
    return Table(title, ["prompt", "answer"], [[row.prompt, "the same" if row.same else "another"] for row in rows], 2)
