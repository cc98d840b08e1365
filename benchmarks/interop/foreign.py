"""Have other programs quantize SmolLM2, each in an environment of its own, and run here what they write.

python -m benchmarks.interop.foreign                    # every one: gigabytes of packages, an hour or two
python -m benchmarks.interop.foreign GPTQModel AutoAWQ  # these anew, the others as they were
python -m benchmarks.interop.foreign GPTQModel --checkpoint awq --checkpoint "gptq, 3 bits"  # these of its rows

What a checkpoint writes here is compared with what the program writes that made it. A checkpoint that is there already
is opened by both again, and not made anew.
"""

import datetime
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.interop.trying import QUIET, SCRIPTS, NoEnvironment, answer, environment, last_line, versions
from benchmarks.interop.writers import WRITERS, Writer

# What is calibrated on: texts of so many letters.
TEXTS, LETTERS = 4, 250
SECONDS = 7200
MADE = tuple(dict.fromkeys(made for writer in WRITERS for made in writer.makes))


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice([writer.name for writer in WRITERS]))
@click.option("--checkpoint", "only", multiple=True, type=click.Choice(MADE), help="Only those of this name.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/interop"), show_default=True)
def main(names: Sequence[str], only: Sequence[str], folder: Path) -> None:
    from benchmarks.interop.page import FOREIGN, cells

    folder.mkdir(parents=True, exist_ok=True)
    for writer in WRITERS:
        asked = [made for made in writer.makes if made in (only or MADE)]
        if not asked or (names and writer.name not in names):
            continue
        for made, found, result in _tried(writer, asked, folder):
            click.echo(f"{writer.name:16} {made:24} {result}")
            FOREIGN.write(cells(writer.name, found, made, result, datetime.date.today().isoformat()))


def _tried(writer: Writer, asked: Sequence[str], folder: Path):
    """Of each checkpoint asked for its name, the versions that wrote it, and what came of it."""
    try:
        python = environment(writer, folder.resolve() / "environments")
    except NoEnvironment as error:
        for made in asked:
            yield made, {}, f"pip: {error}"
        return
    found = versions(python, writer.shows)
    for made in asked:
        yield made, found, _result(writer, made, python, folder)


def _result(writer: Writer, made: str, python: Path, folder: Path) -> str:
    from benchmarks.interop.reading import compare, tell
    from qlinear.errors import AwqError
    from run_awq import load

    slug = f"{writer.name}-{made}".lower().replace(",", "").replace(" ", "-")
    place = folder / "foreign" / (slug + ".gguf" * writer.of_gguf)
    theirs = _written(writer, made, python, place, folder)
    if isinstance(theirs, str):
        return f"not written: {theirs}"
    try:
        model = load(place)
    except AwqError as error:
        return f"refused: {error}"
    return tell(compare(model, theirs))


def _written(writer: Writer, made: str, python: Path, place: Path, folder: Path) -> list[list[int]] | str:
    """What the program writes after each prompt, of the checkpoint that it leaves in `place`; or why it does not."""
    from benchmarks.interop.checkpoints import MODEL
    from checkpoints.local import embedded_file

    source = embedded_file(MODEL) if writer.of_gguf else _floats(folder / "checkpoints" / "floats")
    given = folder / "given.json"
    given.write_text(json.dumps(_given() | dict(how=writer.makes[made])), encoding="utf-8")
    place.parent.mkdir(parents=True, exist_ok=True)
    command = [python, SCRIPTS / f"{writer.script}.py", source.resolve(), place.resolve(), given.resolve()]
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **QUIET},
            cwd=folder,
        )  # fmt: skip
        said, error = answer(done.stdout), last_line(done.stderr)
    except subprocess.TimeoutExpired:
        said, error = None, f"nothing within {SECONDS} s"
    if said is None:
        shutil.rmtree(place, ignore_errors=True)  # it may not be whole
        return error
    return said["tokens"]


def _given() -> dict:
    from benchmarks.interop.checkpoints import COUNT, MODEL, PROMPTS
    from checkpoints.pretrained import open_pretrained
    from quantization.texts.samples import builtin_text

    tokenizer, text = open_pretrained(MODEL).tokenizer, builtin_text(["prose"])
    starts = range(0, len(text) - LETTERS, len(text) // TEXTS)
    return dict(
        texts=[text[start : start + LETTERS] for start in starts][:TEXTS],
        prompts=[tokenizer(prompt)["input_ids"] for prompt in PROMPTS],
        count=COUNT,
    )


def _floats(place: Path) -> Path:
    """SmolLM2 as a directory of floats, made unless it is there."""
    from benchmarks.interop.checkpoints import MODEL
    from checkpoints.pretrained import open_pretrained
    from checkpoints.writer import Description

    if not (place / "tokenizer.json").is_file():
        opened = open_pretrained(MODEL)
        opened.load().save_pretrained(place)
        Description(opened.config, opened.generation_config, opened.tokenizer).save(place)
    return place


if __name__ == "__main__":
    main()
