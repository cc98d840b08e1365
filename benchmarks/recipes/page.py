"""docs/results.md: for each model three tables and two pictures, and how all of it was measured."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.recipes.figures import ANSWERS, Draw, Figures, Record, Value
from benchmarks.recipes.picture import Point, draw
from benchmarks.recipes.rows import DISTILL_STEPS, ROWS, Row
from benchmarks.table import Table
from benchmarks.yardstick.measure import Told, ratio
from checkpoints.local import slug

NOTE = """\
## How it was measured

- **draws** of the calibration text `{calib_data}`, {n_samples} samples of 512 tokens each. Where there are several, a
  figure is their mean, and after it, in brackets, stands how far a single one lies from that (standard deviation).
- **minutes** are those of the whole command, reading and writing included; of another program, those that it took with
  the opened model. In brackets, those before a distillation: the same work as the row without one, so that they tell
  where the machine was slower than it was for that. Where other work ran beside, none are told.
- **bits** a weight are those of the quantized layers, scales and zero points included. **MB** are those of all tensors,
  the embedding too. Rows with `-lm_head` have the output head among the quantized layers; where it is the embedding it
  is stored beside that, so that the file is larger, and less of it is read for a token.
- **perplexity** is of {windows}, ± its standard error over windows. On the
  text that a model was calibrated on it would flatter itself.
"""
ANSWERED = """\
- **answers** are to lm-eval's own tasks at its own shot counts (none for any of the three):
  accuracy for MC2 and WinoGrande, accuracy normalized by length for ARC challenge, of {questions} each, with lm-eval's
  standard errors.
"""
TIMED = """\
- **tokens/s** is new tokens / (prefill + decode) seconds: prompt "Hello, my name is", 200 new tokens, the mean of 5
  samples after one that is not counted. **GB/s** is size times tokens/s. **peak** is the largest resident set
  meanwhile, interpreter and libraries included; each measurement is a process of its own. **size** is that of all
  stored tensors without the embedding, or with it where the output head is tied to it and reads it for every token.
"""
DIVERGENCES = """\
- The **divergences** are those of the predictions from the float model's, in nats a token (Kullback-Leibler), on
  passages of up to three kinds: `{web}`, the float model's own answers in a chat (where it has a template for one), and
  sources of Python's library. ± is the standard error over passages. **99 %** is what one token in a hundred exceeds,
  **top-1** the share of tokens for which both models find the same one likeliest, both on `{web}`.
  **beside default** is by how much the divergence there is larger than that of the default at as many bits, passage by
  passage, where most of the scatter drops out.
"""
QUALITY = ("draws", "minutes", "bits", "MB", "perplexity")
SPEED = ["", "tokens/s", "GB/s", "peak GB", "size GB"]
TASKS = {"truthfulqa_mc2": "TruthfulQA MC2", "winogrande": "WinoGrande", "arc_challenge": "ARC challenge"}


def write_page(record: Record, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        "# What each recipe costs and keeps",
        f"Made by `{record.command()}`. `default`, `learned`, `distilled` (the default and {DISTILL_STEPS} "
        "steps of `--distill`), `learned-distilled` (`learned` and as many) and `mixed` (`--bits_per_weight`, "
        "groups of any size) are this project's. `int4wo` and `awq` are torchao's recipes, by its names, and "
        "`rounded` the same at 3 bits, run by this project. What is named after another program was made by "
        "that, and read and measured here as all else is.",
    ]
    for model, found in record.rows.items():
        parts += [f"## {model}", record.abouts[model], *_of_model(model, found, record.ended.get(model, {}), output)]
    questions = f"the first {record.settings['limit']} questions" if record.settings["limit"] else "all questions"
    every = [figures for found in record.rows.values() for figures in found.values()]
    note = NOTE.format(**record.settings, windows=record.windows)
    if record.settings["web"]:
        note += DIVERGENCES.format(web=record.settings["web"])
    if any(figures.answers for figures in every):
        note += ANSWERED.format(questions=questions)
    if any(figures.timed for figures in every):
        note += TIMED
    parts.append(note)
    output.write_text("\n\n".join(parts), encoding="utf-8")


def _of_model(model: str, found: Mapping[str, Figures], ended: Mapping[str, str], output: Path) -> Iterable[str]:
    rows = [row for row in ROWS if row.name in found]
    yield quality(rows, found).markdown()
    if processors := _processors(rows, found):
        yield processors
    if ended:
        yield f"Not waited for: {'; '.join(f'{name} {told}' for name, told in ended.items())}."
    if missing := [row.name for row in ROWS if row.name not in found and row.name not in ended]:
        yield f"Not run yet: {', '.join(missing)}."
    points = [(row, divergence) for row in rows if (divergence := _web(found[row.name])) is not None]
    for name, label, value in (
        ("size", "bits a weight", lambda draw: draw.bits),
        ("time", "minutes to make", lambda draw: draw.seconds / 60),
    ):
        placed = [Point(row, value(_first(found[row.name])), web) for row, web in points]
        if costing := [point for point in placed if point.x]:
            file = output.with_name(f"{output.stem}-{slug(model)}-{name}.svg")
            draw(label, costing, file)
            yield f"![divergence against {label}]({file.name})"
    if asked := [row for row in rows if found[row.name].answers]:
        yield "**Answers.**"
        cells = [[row.name, *_answers(found[row.name])] for row in asked]
        yield Table("answers", ["", *TASKS.values()], cells).markdown()
    timed: dict[str, list[Row]] = {}
    for row in rows:
        if (known := found[row.name].timed) is not None:
            about = f"{known.processor}, threads: {known.speed.threads}"
            timed.setdefault(about, []).append(row)
    for about, some in timed.items():
        yield f"**Speed** on {about}."
        yield Table("speed", SPEED, [_speed(row, found[row.name]) for row in some]).markdown()


def quality(rows: list[Row], found: Mapping[str, Figures]) -> Table:
    texts = list(dict.fromkeys(text for row in rows for one in found[row.name].draws.values() for text in one.texts))
    headings = ["", *QUALITY, *texts]
    if texts:
        headings += ["99 %", "top-1", "beside default"]
    cells = []
    for row in rows:
        figures = found[row.name]
        draws = list(figures.draws.values())
        first = draws[0]
        perplexity = _over([Value(one.perplexity.value, one.perplexity.stderr) for one in draws], 2)
        stored = "-" if first.stored is None else f"{first.stored / 1e6:.0f}"
        line = [row.name, str(len(draws)), _minutes(row, draws), f"{first.bits:.2f}", stored, perplexity]
        for text in texts:
            told = [one.texts[text] for one in draws if text in one.texts]
            line.append(_over([estimate(each) for each in told], 3) if told else "-")
        if texts:
            told = first.texts.get(texts[0])
            line += [f"{told.most:.2f}", f"{told.agreement:.3f}"] if told else ["-", "-"]
            line.append(_beside(row, found, texts[0]))
        cells.append(line)
    return Table("quality", headings, cells)


def _minutes(row: Row, draws: list[Draw]) -> str:
    """Of all, and of a distilled one those before its first step."""
    minutes = sum(one.seconds for one in draws) / len(draws) / 60
    before = [one.search for one in draws if one.search is not None]
    if row.recipe is None or not row.recipe.distill or not before:
        return f"{minutes:.1f}" if minutes else "-"
    return f"{minutes:.1f} ({sum(before) / len(before) / 60:.1f})"


def estimate(told: Told) -> Value:
    found = ratio(told.sums, told.tokens)
    return Value(found.value, found.error)


def _over(values: list[Value], digits: int) -> str:
    """The mean of the draws, the error of the first, and of several how far one lies from the mean."""
    mean = sum(one.value for one in values) / len(values)
    cell = Value(mean, values[0].stderr).cell(digits)
    if len(values) == 1:
        return cell
    off = math.sqrt(sum((one.value - mean) ** 2 for one in values) / (len(values) - 1))
    return f"{cell} ({off:.{digits}f})"


def _beside(row: Row, found: Mapping[str, Figures], text: str) -> str:
    """Against the default at as many bits, draw by draw and passage by passage; nothing where there is none."""
    bits = _first(found[row.name]).bits
    name = f"default-w{int(bits)}"
    if name == row.name or name not in found or bits % 1 > 0.5:
        return ""
    base, draws = found[name].draws, found[row.name].draws
    pairs = [
        (one.texts[text], base.get(seed, _first(found[name])).texts[text])
        for seed, one in draws.items()
        if text in one.texts and text in base.get(seed, _first(found[name])).texts
    ]
    if not pairs:
        return ""
    values = []
    for one, other in pairs:
        above = ratio([a - b for a, b in zip(one.sums, other.sums, strict=True)], one.tokens)
        values.append(Value(above.value, above.error))
    mean = sum(one.value for one in values) / len(values)
    return f"{mean:+.3f} ± {values[0].stderr:.3f}"


def _first(figures: Figures) -> Draw:
    return next(iter(figures.draws.values()))


def _web(figures: Figures) -> float | None:
    """The divergence on the first kind of text, in the mean of the draws."""
    values = [estimate(next(iter(one.texts.values()))).value for one in figures.draws.values() if one.texts]
    return sum(values) / len(values) if values else None


def _processors(rows: list[Row], found: Mapping[str, Figures]) -> str:
    """Where the minutes were measured, and by which versions of other programs."""
    by_processor: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    for row in rows:
        for one in found[row.name].draws.values():
            if one.seconds and row.name not in by_processor.setdefault(one.processor, []):
                by_processor[one.processor].append(row.name)
            versions |= one.versions
    if len(by_processor) == 1:
        told = [f"Minutes on {next(iter(by_processor))}."]
    else:
        told = [f"Minutes on {name}: {', '.join(names)}." for name, names in by_processor.items()]
    if versions:
        told.append("Other programs: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return " ".join(told)


def _answers(figures: Figures) -> list[str]:
    return [figures.answers[task].cell(3) if task in figures.answers else "-" for task in ANSWERS]


def _speed(row: Row, figures: Figures) -> list[str]:
    speed = figures.timed.speed
    return [
        row.name,
        Value(speed.tok_s, speed.tok_s_stderr).cell(1),
        f"{speed.size_bytes * speed.tok_s / 1e9:.2f}",
        f"{speed.peak_rss_bytes / 1e9:.2f}",
        f"{speed.size_bytes / 1e9:.3f}",
    ]
