"""Perplexity of a checkpoint here and of its GGUF files in llama.cpp, by one rule over the same tokens.

python -m benchmarks.interop.perplexity CHECKPOINT --text wiki.test.txt

Windows of 2048 tokens that do not overlap; of each, all tokens but the first are predicted.
"""

import json
import subprocess
from pathlib import Path

import click

from benchmarks.interop.openers import LLAMA_CPP
from benchmarks.interop.trying import SCRIPTS, answer, environment, last_line
from benchmarks.table import Table

FOLDER, WINDOW = Path("build/interop"), 2048


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--text", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--formats", default="gguf,gguf-f16", show_default=True, help="Names of formats, with commas.")
@click.option("--n_windows", type=click.IntRange(1), default=20, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of llama.cpp.")
def main(checkpoint: Path, text: Path, formats: str, n_windows: int, threads: int) -> None:
    from engine.scoring import cut_windows, negative_log_likelihood, perplexity
    from run_awq import load

    FOLDER.mkdir(parents=True, exist_ok=True)
    python = environment(LLAMA_CPP, FOLDER.resolve() / "environments")
    model = load(checkpoint, flash_attention=True)
    windows = cut_windows(model.encode(text.read_text(encoding="utf-8")), WINDOW, n_windows, text.name)
    decoder = model.decoder(WINDOW)
    ours = perplexity(sum(negative_log_likelihood(decoder, each) for each in windows), windows)
    cells = [[f"here ({model.about.code})", f"{ours:.4f}", ""]]
    for format in formats.split(","):
        file = exported(checkpoint, format)
        total = sum(in_llama_cpp([python, SCRIPTS / "llama_cpp_nll.py", file], windows.tolist(), threads))
        theirs = perplexity(total, windows)
        cells.append([f"llama.cpp, {format}", f"{theirs:.4f}", f"{theirs / ours - 1:+.2%}"])
    click.echo(Table("perplexity", ["", "perplexity", "to ours"], cells, texts=1).markdown())


def exported(checkpoint: Path, format: str) -> Path:
    from run_awq import export

    place = FOLDER / f"{checkpoint.resolve().name}.{format}.gguf"
    export(checkpoint, place, format, overwrite=True)
    return place


def in_llama_cpp(command: list, windows: list[list[int]], threads: int) -> list[float]:
    """Nats of each window."""
    listed = FOLDER / "windows.json"
    listed.write_text(json.dumps(windows), encoding="utf-8")
    done = subprocess.run([*command, listed, str(threads)], capture_output=True, text=True)
    found = answer(done.stdout)
    if found is None:
        raise click.ClickException(f"llama.cpp: {last_line(done.stderr)}")
    return found["nats"]


if __name__ == "__main__":
    main()
