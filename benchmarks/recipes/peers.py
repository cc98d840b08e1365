"""A checkpoint by another program, in an environment of its own, on the text that this project's rows are made from.

\b
    python -m benchmarks.recipes.peers --writer GPTQModel --bits 3 --how '{"bits": 3}' --model_name MODEL ...

What is timed is what the program does with the opened model, not its start and not the making of its environment. One
that is not done after `--patience` minutes is ended, and that is the result.
"""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True)
class Peer:
    """writer: by its name in `benchmarks.interop.writers`; bits: a weight, zero points (unless symmetric) and scales
    not counted; how: what its script is told, its group size left out.
    """

    writer: str
    bits: int
    symmetric: bool
    how: dict[str, Any] = field(hash=False)


def with_groups(how: Any, group_size: int) -> Any:
    """What a script is told, with the size of the groups where it is asked for."""
    if not isinstance(how, dict):
        return how
    sized = {name: with_groups(value, group_size) for name, value in how.items()}
    return sized | {"group_size": group_size} if "bits" in how or how.get("strategy") == "group" else sized


@click.command(help=__doc__)
@click.option("--writer", "name", required=True)
@click.option("--bits", type=click.IntRange(1), required=True)
@click.option("--symmetric", is_flag=True)
@click.option("--how", type=json.loads, required=True)
@click.option("--model_name", required=True)
@click.option("--group_size", type=click.IntRange(1), required=True)
@click.option("--calib_data", required=True)
@click.option("--n_samples", type=click.IntRange(1), required=True)
@click.option("--patience", type=click.FloatRange(0, min_open=True), required=True)
@click.option("--environments", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), required=True)
def main(name: str, how: dict, output: Path, environments: Path, json_file: Path, **given: Any) -> None:
    from benchmarks.interop.trying import QUIET, SCRIPTS, NoEnvironment, answer, environment, last_line, versions
    from benchmarks.interop.writers import WRITERS
    from quantization.recipe import Recipe
    from quantization.texts.samples import read_text, token_blocks

    writer = next(writer for writer in WRITERS if writer.name == name)
    try:
        python = environment(writer, environments.resolve())
    except NoEnvironment as error:
        raise click.ClickException(f"pip: {error}") from error
    source, floats = _floats(given["model_name"], output.with_name("floats"))
    recipe = Recipe(n_samples=given["n_samples"])
    samples, _ = token_blocks(source.tokenizer, read_text(given["calib_data"]), recipe)
    told = dict(
        texts=[source.tokenizer.decode(sample) for sample in samples], longest=recipe.seqlen, prompts=[], count=0,
        how=with_groups(how, given["group_size"]),
    )  # fmt: skip
    told_file = output.with_suffix(".json")
    told_file.write_text(json.dumps(told), encoding="utf-8")
    command = [python, SCRIPTS / f"{writer.script}.py", floats.resolve(), output.resolve(), told_file.resolve()]
    patience = given["patience"]
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env={**os.environ, **QUIET}, cwd=output.parent,
            timeout=60 * patience,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        ended = {"ended_after": patience, "versions": versions(python, writer.shows)}
        json_file.write_text(json.dumps(ended), encoding="utf-8")
        return
    if (said := answer(done.stdout)) is None:
        raise click.ClickException(last_line(done.stderr))
    bits = given["bits"]
    found = {
        "seconds": {"total": said["seconds"]},
        "size": {"bits_per_weight": bits + (16 + bits * (not given["symmetric"])) / given["group_size"]},
        "versions": versions(python, writer.shows),
    }
    json_file.write_text(json.dumps(found), encoding="utf-8")


def _floats(model_name: str, place: Path) -> tuple[Any, Path]:
    """The opened model, and a directory of its floats, made unless it is there."""
    from checkpoints.pretrained import open_pretrained
    from checkpoints.writer import Description

    opened = open_pretrained(model_name, False)
    if not (place / "tokenizer.json").is_file():
        opened.load().save_pretrained(place)
        Description(opened.config, opened.generation_config, opened.tokenizer).save(place)
    return opened, place


if __name__ == "__main__":
    main()
