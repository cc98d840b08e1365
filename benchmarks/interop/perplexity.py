"""Perplexity of a checkpoint here and of its GGUF files in llama.cpp, by one rule over the same tokens.

python -m benchmarks.interop.perplexity CHECKPOINT --text wiki.test.txt

Windows that do not overlap; of each, all tokens but the first are predicted.
"""

import json
import subprocess
from pathlib import Path

import click

from benchmarks.interop.openers import LLAMA_CPP
from benchmarks.interop.trying import SCRIPTS, answer, environment, last_line
from benchmarks.table import Table


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--text", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--formats", default="gguf,gguf-f16", show_default=True, help="Names of formats, with commas.")
@click.option("--window", type=click.IntRange(2), default=2048, show_default=True)
@click.option("--n_windows", type=click.IntRange(1), default=20, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of llama.cpp.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/interop"), show_default=True)
def main(checkpoint: Path, text: Path, formats: str, window: int, n_windows: int, threads: int, folder: Path) -> None:
    from engine.scoring import cut_windows, negative_log_likelihood, perplexity
    from run_awq import load

    python = environment(LLAMA_CPP, folder.resolve() / "environments")
    model = load(checkpoint, flash_attention=True)
    windows = cut_windows(model.encode(text.read_text(encoding="utf-8")), window, n_windows, text.name)
    decoder = model.decoder(window)
    ours = perplexity(sum(negative_log_likelihood(decoder, each) for each in windows), windows)
    cells = [[f"here ({model.about.code})", f"{ours:.4f}", ""]]
    for format in formats.split(","):
        file = exported(checkpoint, format, folder)
        total = sum(in_llama_cpp([python, SCRIPTS / "llama_cpp_nll.py", file], windows.tolist(), threads, folder))
        theirs = perplexity(total, windows)
        cells.append([f"llama.cpp, {format}", f"{theirs:.4f}", f"{theirs / ours - 1:+.2%}"])
    click.echo(Table("perplexity", ["", "perplexity", "to ours"], cells, texts=1).markdown())


def exported(checkpoint: Path, format: str, folder: Path) -> Path:
    from run_awq import export

    place = folder / f"{checkpoint.resolve().name}.{format}.gguf"
    export(checkpoint, place, format, overwrite=True)
    return place


def in_llama_cpp(command: list, windows: list[list[int]], threads: int, folder: Path) -> list[float]:
    """Nats of each window."""
    listed = folder / "windows.json"
    listed.write_text(json.dumps(windows), encoding="utf-8")
    done = subprocess.run([*command, listed, str(threads)], capture_output=True, text=True)
    found = answer(done.stdout)
    if found is None:
        raise click.ClickException(f"llama.cpp: {last_line(done.stderr)}")
    return found["nats"]


if __name__ == "__main__":
    main()
