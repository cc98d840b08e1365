"""End to end, token by token: the fused decoder, the same model through its modules, and llama.cpp, in turns.

    python benchmarks/decode.py --shape 1.1b --run fused:4:128 --run fused:3:128 --run modules:4:128 --run llama.cpp
    python benchmarks/decode.py --checkpoint DIRECTORY --gguf FILE --run fused --run modules --run llama.cpp

Every contestant lives in a process of its own, built once, and waits while another runs. A round gives each one
prompt and its continuation; figures are medians over the rounds, ratios are to the last contestant, memory is what
is resident at the end. llama.cpp comes from `llama-cpp-python`, built for this processor:
CMAKE_ARGS=-DGGML_NATIVE=on pip install --no-binary :all: llama-cpp-python; `--llama_python` names another
interpreter that has it.
"""

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import click

ROOT = Path(__file__).resolve().parent.parent


def open_ours(spec: dict):
    """prefill(tokens) and step(token) of one of our decoders."""
    import torch

    from benchmarks.shapes import random_model
    from checkpoints import store
    from qlinear.backends.cpu import CpuBackend
    from qlinear.decoder import ModuleDecoder
    from qlinear.fused import fused_decoder

    torch.set_num_threads(spec["threads"])
    kind, *numbers = spec["run"].split(":")
    join = kind == "fused"
    if spec["checkpoint"]:
        model = store.load(Path(spec["checkpoint"]), CpuBackend(), join).model
    else:
        model = random_model(spec["shape"], int(numbers[0]), int(numbers[1]), join)
    ctypes.CDLL(None).malloc_trim(0)  # what building left behind is not the decoder's
    if kind == "fused":
        decoder, reason = fused_decoder(model, spec["context"])
        if decoder is None:
            raise SystemExit(reason)
    else:
        decoder = ModuleDecoder(model, spec["context"], static_cache=False)
    return lambda tokens: decoder.prefill(torch.tensor(tokens)), lambda token: decoder.step(token).argmax()


def open_llama(spec: dict):
    """The same of llama.cpp, through its C interface."""
    import llama_cpp as llama

    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = spec["context"], 512, 512
    params.n_threads = params.n_threads_batch = spec["threads"]
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    model = llama.llama_model_load_from_file(spec["gguf"].encode(), llama.llama_model_default_params())
    context = llama.llama_init_from_model(model, params)

    def read(tokens: list[int]) -> None:
        array = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(context)

    def prefill(tokens: list[int]) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        for first in range(0, len(tokens), 512):
            read(tokens[first : first + 512])

    return prefill, lambda token: read([token])


def serve(spec: dict) -> None:
    """Build a contestant, then time a run for every line that comes in."""
    import time

    prefill, step = open_llama(spec) if spec["run"] == "llama.cpp" else open_ours(spec)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        prefill(job["prompt"])
        times = [time.perf_counter()]
        for token in job["continuation"]:
            step(token)
            times.append(time.perf_counter())
        steps = [after - before for before, after in zip(times, times[1:], strict=False)]
        print(json.dumps(dict(prefill_s=times[0] - start, step_s=median(steps))), flush=True)


class Contestant:
    def __init__(self, spec: dict, python: str):
        self.name = spec["run"]
        command = [*spec["prefix"].split(), python, __file__, "--serve", json.dumps(spec)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{self.name} did not start")
        self.runs: list[dict] = []

    def run(self, job: dict, keep: bool) -> None:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())
        if keep:
            self.runs.append(result)

    def held_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def summary(contestant: Contestant, prompt: int) -> dict:
    decode = [1 / run["step_s"] for run in contestant.runs]
    prefill = [prompt / run["prefill_s"] for run in contestant.runs]
    return dict(
        run=contestant.name,
        decode_tok_s=median(decode),
        decode_range=[min(decode), max(decode)],
        prefill_tok_s=median(prefill),
        prefill_range=[min(prefill), max(prefill)],
        rss_bytes=contestant.held_bytes(),
    )


def show(rows: list[dict]) -> None:
    last = rows[-1]
    print(f"{'':16} {'decode tok/s':>24} {'ratio':>6} {'prefill tok/s':>24} {'ratio':>6} {'MB held':>8}")
    for row in rows:
        cells = []
        for what in ("decode", "prefill"):
            low, high = row[f"{what}_range"]
            value, ratio = row[f"{what}_tok_s"], row[f"{what}_tok_s"] / last[f"{what}_tok_s"]
            cells.append(f"{value:8.1f} ({low:6.1f} - {high:6.1f}) {ratio:6.2f}")
        print(f"{row['run']:16} {cells[0]} {cells[1]} {row['rss_bytes'] / 1e6:8.0f}")


@click.command()
@click.option("--shape", help="a shape of benchmarks/shapes.py, with random weights")
@click.option("--checkpoint", help="a quantized checkpoint, in place of a shape")
@click.option("--gguf", help="what llama.cpp runs; default: the shape, written for this run")
@click.option("--run", "runs", multiple=True, required=True, help="fused or modules[:bits:group size], or llama.cpp")
@click.option("--prompt", default=512, help="tokens of the prompt")
@click.option("--new", default=64, help="tokens after it")
@click.option("--rounds", default=5)
@click.option("--threads", default=2)
@click.option("--prefix", default="", help="a command to run contestants under, such as taskset or chrt")
@click.option("--llama_python", default=sys.executable)
@click.option("--json", "json_file", help="write the rows here too")
def main(shape, checkpoint, gguf, runs, prompt, new, rounds, threads, prefix, llama_python, json_file):
    with tempfile.TemporaryDirectory() as directory:
        if gguf is None and "llama.cpp" in runs:
            from benchmarks.shapes import write_gguf

            gguf = str(Path(directory) / f"{shape}.gguf")
            write_gguf(shape, Path(gguf))
        common = dict(shape=shape, checkpoint=checkpoint, gguf=gguf, threads=threads, context=prompt + new)
        contestants = [
            Contestant(dict(common, run=run, prefix=prefix), llama_python if run == "llama.cpp" else sys.executable)
            for run in runs
        ]
        tokens = [(17 * i + i * i) % 29989 + 3 for i in range(prompt + new)]  # no text: every id costs the same
        for round_ in range(rounds + 1):
            for contestant in contestants:
                contestant.run(dict(prompt=tokens[:prompt], continuation=tokens[prompt:]), keep=round_ > 0)
        rows = [summary(contestant, prompt) for contestant in contestants]
        for contestant in contestants:
            contestant.close()
    show(rows)
    if json_file:
        Path(json_file).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if "--serve" in sys.argv:
        serve(json.loads(sys.argv[-1]))
    else:
        main()
