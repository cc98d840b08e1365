"""`--task serve` as a process of its own, on a free port."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import httpx
import openai

SCRIPT = Path(__file__).parents[2] / "run_awq.py"
BEGIN = """
import os, sys, time
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
from awq_cli.main import main
"""
# A model that takes its time: a tiny one has written everything before anybody can go away.
SLOWLY = f"""{BEGIN}
from engine.batching import Batch
quick = Batch._step
def slowly(*arguments):
    time.sleep(0.03)
    quick(*arguments)
Batch._step = slowly
main()
"""
# One that says what a file holds, token by token, where it is not to draw.
SAYING = f"""{BEGIN}
import json
from awq_cli.serving import choosing
drawing = choosing._choosers
def saying(given, count):
    if given.get("temperature") != 0:
        return drawing(given, count)
    with open(os.environ["SAID"]) as file:
        tokens = json.load(file)
    return [lambda logits, left=iter(tokens): next(left) for _ in range(count)]
choosing._choosers = saying
main()
"""


class Server:
    """url: of the API; name: of its model."""

    def __init__(self, checkpoint: Path, *arguments, slowly: bool = False, code: str = "", **environment):
        code = SLOWLY if slowly else code
        how = ["-c", code] if code else []
        command = [sys.executable, *how, SCRIPT, "--task", "serve", "--checkpoint", checkpoint, "--port", 0, *arguments]
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.name = checkpoint.name
        timer = Timer(60, self.process.kill)
        timer.start()
        self.first = self.process.stdout.readline()
        timer.cancel()
        found = re.search(r"(http://\S+)/v1$", self.first)
        assert found, (self.first, self.process.communicate())
        self.url = found[1]

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Its exit status, and what else it wrote."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err

    def client(self, key: str = "none", **how) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30, **how)

    def post(self, path: str, body: dict | bytes, **headers: str) -> httpx.Response:
        content = {"content": body} if isinstance(body, bytes) else {"json": {"model": self.name, **body}}
        return httpx.post(f"{self.url}/v1/{path}", **content, headers=headers, timeout=30)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])
