"""The server under load: what several texts at once are worth, and whether it stands what clients do.

\b
    python -m benchmarks.serving throughput --checkpoint DIR
    python -m benchmarks.serving soak --checkpoint DIR --minutes 10
    python -m benchmarks.serving vllm --checkpoint DIR --python ENVIRONMENT/bin/python
"""

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.machine import processor
from benchmarks.serving.server import serving, serving_llama_cpp
from benchmarks.serving.soak import soak
from benchmarks.serving.soak import table as soak_table
from benchmarks.serving.throughput import batch_times, llama_cpp_step_rates, measure, served_times, step_rates, table
from engine.batching import Batch
from qlinear.backends.cpu import native
from run_awq import load

checkpoint_option = click.option(
    "--checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Of the cpu."
)
json_option = click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write what was found to a file."
)


@click.group(help=__doc__)
def command() -> None: ...


@command.command()
@checkpoint_option
@click.option("--streams", default="1,4,8", show_default=True, help="Texts at once; multiples are of the first.")
@click.option("--tokens", default=128, show_default=True, help="To write in each.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--llama_cpp", nargs=2, metavar="PYTHON GGUF", help="Its steps too: a Python that has it, and a file.")
@click.option("--llama_server", metavar="PROGRAM", help="llama.cpp's server, with as many slots, in turns with ours.")
@json_option
def throughput(checkpoint: Path, streams: str, json_file: Path | None, **given: Any) -> None:
    """Tokens a second of several texts at once, as a multiple of what one alone has.

    With --llama_server, of the file that --llama_cpp names.
    """
    tokens, rounds = given["tokens"], given["rounds"]
    llama_cpp, llama_server = given["llama_cpp"], given["llama_server"]
    if llama_server is not None and llama_cpp is None:
        raise click.UsageError("--llama_server needs the file that --llama_cpp names")
    counts = tuple(int(count) for count in streams.split(","))
    model = load(checkpoint)
    threads = native.threads()
    native.set_threads(1)
    rows = step_rates(model.slots(128, max(counts)), counts, rounds)
    if llama_cpp is not None:
        rows += llama_cpp_step_rates(*llama_cpp, counts, rounds)
    native.set_threads(threads)
    batch = Batch(model.slots(2 * tokens + 64, max(counts)), most_waiting=max(counts))
    rows += measure({"batch": lambda count, seed: batch_times(batch, count, tokens, seed)}, counts, rounds)
    batch.close()
    with ExitStack() as ends:
        context = 2 * tokens + 64
        ours = ends.enter_context(serving(checkpoint, "--slots", max(counts), "--context", context))
        ways = {"over HTTP": lambda count, seed: served_times(ours, count, tokens, seed)}
        if llama_server is not None:
            theirs = ends.enter_context(serving_llama_cpp(llama_server, llama_cpp[1], max(counts), context, threads))
            ways["llama.cpp's server"] = lambda count, seed: served_times(theirs, count, tokens, seed)
        rows += measure(ways, counts, rounds)
    title = f"{checkpoint.name}, {model.about.code}, {threads} threads of {processor()}; median of {rounds} rounds"
    Console().print(table(rows, title).rich())
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2))


@command.command("soak")
@checkpoint_option
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@json_option
def soak_command(checkpoint: Path, minutes: float, seed: int, json_file: Path | None) -> None:
    """Clients that go away, send what is no request or ask for too much; ends with status 1 if anything went wrong."""
    with serving(checkpoint, "--slots", 4) as server:
        tally = soak(server, minutes, seed)
    Console().print(soak_table(tally).rich())
    for wrong in tally.wrong[:20]:
        click.echo(f"wrong: {wrong}", err=True)
    if json_file is not None:
        json_file.write_text(json.dumps(vars(tally), indent=2))
    sys.exit(bool(tally.wrong))


@command.command()
@checkpoint_option
@click.option(
    "--python", type=click.Path(exists=True, path_type=Path), required=True, help="Of an environment with vLLM."
)
@click.option("--tokens", default=16, show_default=True, help="To write in each answer.")
@click.option("--shards", default=1, show_default=True, help="vLLM's --tensor-parallel-size.")
def vllm(checkpoint: Path, python: Path, tokens: int, shards: int) -> None:
    """OpenAI's client asks vLLM and this program's server the same; ends with status 1 if greedy answers differ."""
    from benchmarks.serving import beside_vllm

    rows = beside_vllm.compare(checkpoint, python, tokens, shards)
    Console().print(beside_vllm.table(rows, f"{checkpoint.name}: {tokens} greedy tokens of vLLM and ours").rich())
    for row in rows:
        if not row.same:
            click.echo(f"{row.prompt!r}: {row.ours!r} here, {row.theirs!r} there", err=True)
    sys.exit(not all(row.same for row in rows))


command()
