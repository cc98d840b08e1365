"""How far checkpoints lie from the float model, on text that nothing was fitted to.

\b
    python -m benchmarks.yardstick --web wikitext.txt --recipe gptq=DIR --recipe distilled=DIR
    python -m benchmarks.yardstick --web wikitext.txt --recipe gptq=DIR,DIR,DIR --recipe rtn=DIR,DIR,DIR

A recipe may have several checkpoints, made from different draws of the calibration text: their mean and scatter are
told. Differences are to the first recipe, from passage to passage. All checkpoints are held in memory at once.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from benchmarks.table import Table
from benchmarks.yardstick.measure import Apart, Estimate, collect, over_draws
from benchmarks.yardstick.texts import QUESTIONS, Passage, chat, code, web
from engine.model import Model
from run_awq import load

HEADINGS = ["recipe", "draws", "divergence", "of a draw", "more than the first", "median", "99 %", "top-1"]


def named(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> dict[str, list[str]]:
    """NAME=DIR,DIR -> the directories of each name."""
    found = {}
    for one in given:
        name, _, places = one.partition("=")
        if not name or not places or name in found:
            raise click.BadParameter(f"{one} is not a new NAME=DIR[,DIR...]")
        found[name] = places.split(",")
    return found


def texts(model: Model, files: Sequence[Path], count: int, window: int) -> dict[str, list[Passage]]:
    """By their names; a model without a chat template is not asked to chat."""
    found = {file.name: web(model, file, count, window) for file in files}
    if len(found) < len(files):
        raise click.BadParameter("two files of one name", param_hint="--web")
    if model.tokenizer.chat_template:
        found["chat"] = chat(model, min(count, len(QUESTIONS)), window // 2)
    return found | {"code": code(model, count, window)}


def table(text: str, found: dict[str, list[Apart]]) -> Table:
    """A row a recipe; what is of single tokens is of the first draw."""
    first = next(iter(found.values()))
    made = []
    for name, draws in found.items():
        one = draws[0]
        more = "" if draws is first else _told(_differences(draws, first))
        scatter = over_draws(draws).error
        made.append(
            [name, str(len(draws)), _told(Estimate(over_draws(draws).value, one.mean.error)),
             "" if math.isnan(scatter) else f"{scatter:.4f}", more, f"{one.quantile(0.5):.4f}",
             f"{one.quantile(0.99):.3f}", _told(one.agreement, 3)]
        )  # fmt: skip
    return Table(text, HEADINGS, made)


def _differences(draws: list[Apart], first: list[Apart]) -> Estimate:
    """Of one draw each, the error follows from the passages; of several, from the draws too."""
    pairs = [one.above(other) for one, other in zip(draws, first, strict=False)]
    values = Estimate(sum(pair.value for pair in pairs) / len(pairs), pairs[0].error)
    if len(pairs) == 1:
        return values
    off = sum((pair.value - values.value) ** 2 for pair in pairs) / (len(pairs) - 1) / len(pairs)
    return Estimate(values.value, math.hypot(values.error, math.sqrt(off)))


def _told(estimate: Estimate, digits: int = 4) -> str:
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


@click.command(help=__doc__)
@click.option("--model_name", default="smollm2-135m-instruct", show_default=True, help="The float model.")
@click.option("--recipe", "recipes", multiple=True, required=True, callback=named, help="NAME=DIR[,DIR...]")
@click.option(
    "--web",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="A text file; several are several kinds of text.",
)
@click.option("--passages", default=24, show_default=True, type=click.IntRange(2, len(QUESTIONS)), help="Of each kind.")
@click.option("--window", default=512, show_default=True, type=click.IntRange(16), help="Tokens of a passage.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write it to a file, by texts and recipes.")
def main(model_name: str, recipes: dict, web: Sequence[Path], json_file: Path | None, **sizes: int) -> None:
    reference = load(model_name, precision="bf16")
    models = {name: [load(place) for place in places] for name, places in recipes.items()}
    flat, kept = [model for draws in models.values() for model in draws], {}
    for text, some in texts(reference, web, sizes["passages"], sizes["window"]).items():
        found = iter(collect(flat, reference, some))
        by_name = {name: [next(found) for _ in draws] for name, draws in models.items()}
        tokens = sum(len(passage.tokens) - passage.first for passage in some)
        kept[text] = {name: [asdict(one.told()) for one in draws] for name, draws in by_name.items()}
        Console().print(table(f"{text}, {tokens:,} tokens of {len(some)} passages", by_name).rich())
    if json_file is not None:
        json_file.write_text(json.dumps(kept, indent=2))


if __name__ == "__main__":
    main()
