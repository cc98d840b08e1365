"""SmolLM2 as llama.cpp puts it into Q4_0, run here: does it write here what it writes there?

python -m benchmarks.interop.foreign
"""

import json
import subprocess
from pathlib import Path

import click

from benchmarks.interop.openers import LLAMA_CPP
from benchmarks.interop.trying import SCRIPTS, agreement, answer, environment, last_line
from benchmarks.table import Table

FOLDER = Path("build/interop")


@click.command(help=__doc__)
def main() -> None:
    from benchmarks.interop.checkpoints import COUNT, MODEL, PROMPTS, answered
    from checkpoints.local import embedded_file
    from checkpoints.pretrained import open_pretrained
    from run_awq import load

    FOLDER.mkdir(parents=True, exist_ok=True)
    place = FOLDER / "llama.cpp.gguf"
    tokenizer = open_pretrained(MODEL).tokenizer
    prompts = json.dumps([tokenizer(prompt)["input_ids"] for prompt in PROMPTS])
    python = environment(LLAMA_CPP, FOLDER.resolve() / "environments")
    command = [python, SCRIPTS / "write_llama_cpp.py", embedded_file(MODEL), place, prompts, COUNT]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    theirs = answer(done.stdout)
    if theirs is None:
        raise click.ClickException(f"llama.cpp: {last_line(done.stderr)}")
    model, rows = load(place), []
    for prompt, tokens in zip(PROMPTS, theirs["tokens"], strict=True):
        ours = answered(model, prompt)
        rows.append([prompt, f"{agreement(ours.tokens, tokens)} of {COUNT}", f"{ours.margin:.2f}"])
    click.echo(Table("foreign", ["prompt", "same tokens", "least lead here"], rows, texts=1).markdown())


if __name__ == "__main__":
    main()
