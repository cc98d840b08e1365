"""The CPU engine beside its peers and beside what the machine can do at best, in one run.

\b
    python -m benchmarks.cpu --json cpu.json --docs       everything, on an otherwise idle machine
    python -m benchmarks.cpu --quick                      a short look: one shape, one small model
    python -m benchmarks.cpu --plot_from cpu.json --docs  tables and pictures again, from saved rows

Ours and theirs alternate in rounds: one linear layer over M rows of activations on several shapes, then whole models
against llama.cpp, ik_llama.cpp, OpenVINO and ONNX Runtime GenAI, each by an interpreter or a build that has it. A peer
that is not installed is named and left out.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from benchmarks.cpu.linears import Bench, sweep
from benchmarks.cpu.models import MODELS, SMOLLM2, entries
from benchmarks.cpu.peers import has_onnxruntime
from benchmarks.cpu.picture import draw
from benchmarks.cpu.race import Race, run
from benchmarks.cpu.report import LAYOUT, LinearRun, Machine, ModelRun, Report, Shape
from benchmarks.cpu.rivals import RIVALS
from benchmarks.cpu.roofs import Roof, roofs
from benchmarks.cpu.tables import show, write_docs
from benchmarks.docs import DOCS
from benchmarks.machine import available_bytes, processor
from qlinear.backends.cpu import native
from qlinear.errors import AwqError
from qlinear.sizes import GROUP_SIZES

DEFAULT_SHAPE = Shape(4096, 4096)
SHAPES = "4096x4096,11008x4096,4096x11008,32000x4096,5632x2048"
SHAPE_ROWS = (1, 128, 512)
SWEEP = "1,2,4,8,16,32,64,128,256,512,1024"
NEEDED_GB = {"7b": 14, "30b-a3b-12l": 10}  # free memory: two engines and their files
QUICK = dict(shapes=(), sweep_rows=(1, 16, 128), seconds=1.0, end_to_end=(SMOLLM2,), rounds=2, starts=1)


def machine(threads: int, rivals: dict[str, str]) -> Machine:
    """rivals: versions of other programs, by their names."""
    versions = {"torch": torch.__version__.split("+")[0]}
    if has_onnxruntime():
        versions["ONNX Runtime (ORT)"] = version("onnxruntime")
    return Machine(processor(), threads, native.select_isa(), versions | rivals)


def say(text: str) -> None:
    click.echo(text, err=True)


def linear_jobs(shapes: tuple[Shape, ...], sweep_rows: tuple[int, ...]) -> dict[Shape, list[int]]:
    """Every M on the default shape, a few M on the others."""
    jobs = {shape: set(SHAPE_ROWS) for shape in shapes}
    jobs.setdefault(DEFAULT_SHAPE, set()).update(sweep_rows)
    return {shape: sorted(all_m) for shape, all_m in jobs.items()}


def linears(jobs: dict[Shape, list[int]], bench: Bench) -> Iterator[LinearRun]:
    if not has_onnxruntime():
        say("ONNX Runtime is left out: pip install -c constraints.txt -e '.[bench]'")
    for shape, all_m in jobs.items():
        for measured in sweep(shape, all_m, bench):
            speeds = (f"{row.kernel.value} {row.taken.seconds * 1e6:.0f} us" for row in measured.rows)
            say(f"{shape} M={measured.m}: " + ", ".join(speeds))
            yield measured


def models(names: tuple[str, ...], work: Path, race: Race, found: list[Roof]) -> Iterator[ModelRun]:
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        free = available_bytes() / 1e9
        if free < NEEDED_GB.get(name, 0):
            say(f"{name} is left out: it needs {NEEDED_GB[name]} GB of free memory, {free:.0f} are there")
            continue
        say(f"{name}: files in {work}")
        yield run(name, entries(name, work, race.programs, say), race, found)


def measure(options: dict[str, Any]) -> Report:
    """options: of the command, by name."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    names, versions, programs = options["end_to_end"], {}, {}
    for rival in RIVALS:
        place = options[rival.option]
        if (there := rival.version(place)) is not None:
            programs[rival.engine], versions[rival.told] = place, there
        elif names:
            name = rival.engine.value
            say(f"{name} is left out: {place} has no {rival.module} (see --{rival.option}); {rival.install}")
    race = Race(*(options[name] for name in ("prompt", "new", "rounds", "starts", "threads")), programs)
    found = roofs()
    jobs = linear_jobs(options["shapes"], options["sweep_rows"])
    layers = tuple(linears(jobs, Bench(options["group_size"], options["seconds"], found)))
    with tempfile.TemporaryDirectory() as directory:
        work = Path(options["work"] or directory).resolve()
        wholes = tuple(models(names, work, race, found))
    return Report(LAYOUT, machine(race.threads, versions), layers, wholes)


def listed(parse: Callable[[str], Any]) -> Callable[..., tuple]:
    """The callback of an option whose values have commas between them."""

    def callback(context: click.Context, parameter: click.Parameter, value: str) -> tuple:
        try:
            return tuple(parse(part) for part in value.split(",") if part)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def shape(text: str) -> Shape:
    n, _, k = text.partition("x")
    if not (n.isdecimal() and k.isdecimal() and int(n) and int(k)):
        raise ValueError(f"{text} has to be NxK, 4096x4096 say")
    return Shape(int(n), int(k))


def row_count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{text} has to be a number from 1 up")
    return int(text)


def known_model(name: str) -> str:
    if name not in MODELS:
        raise ValueError(f"{name}: has to be among {','.join(MODELS)}")
    return name


POSITIVE = click.IntRange(1)
SHAPES_HELP = f"NxK, each at M = {', '.join(map(str, SHAPE_ROWS))}; may be empty."


@click.command(help=__doc__)
@click.option("--threads", default=2, type=POSITIVE, show_default=True)
@click.option("--group_size", default=128, type=click.Choice(GROUP_SIZES), show_default=True, help="Of linear layers.")
@click.option("--shapes", default=SHAPES, callback=listed(shape), show_default=True, help=SHAPES_HELP)
@click.option(
    "--sweep_rows",
    default=SWEEP,
    callback=listed(row_count),
    show_default=True,
    help=f"M on {DEFAULT_SHAPE}; may be empty.",
)
@click.option("--seconds", default=6.0, show_default=True, help="For each shape and M.")
@click.option(
    "--end_to_end", default=",".join(MODELS), callback=listed(known_model), show_default=True, help="Whole models."
)
@click.option("--prompt", default=512, type=POSITIVE, show_default=True, help="Tokens of the models' prompt.")
@click.option("--new", default=64, type=POSITIVE, show_default=True, help="Tokens after it.")
@click.option("--rounds", default=7, type=click.IntRange(2), show_default=True, help="Of each model, after a warm-up.")
@click.option("--starts", default=3, type=POSITIVE, show_default=True, help="Fresh processes of each contestant.")
@click.option("--llama_python", default=sys.executable, help="An interpreter that has llama-cpp-python.")
@click.option(
    "--ik_llama",
    default="ik_llama.cpp",
    type=click.Path(resolve_path=True),
    help="ik_llama.cpp, with a shared build in `build`.",
)
@click.option("--openvino_python", default=sys.executable, help="One that has optimum-intel with OpenVINO.")
@click.option("--genai_python", default=sys.executable, help="One that has onnxruntime-genai.")
@click.option("--work", help="Keep the models' files in this directory (about 18 GB) and use them again.")
@click.option("--quick", is_flag=True, help="One shape, three M, one small model, two rounds.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write what was measured.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the linear layers to this name .png and .svg.")
@click.option(
    "--plot_from",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: read a --json file.",
)
@click.option("--docs", is_flag=True, help="Rewrite the tables and pictures of docs/cpu.md.")
@click.pass_context
def main(context: click.Context, json_file: Path | None, plot: Path | None, docs: bool, **options: Any) -> None:
    if options["quick"]:
        given = context.get_parameter_source
        options |= {name: value for name, value in QUICK.items() if given(name) is ParameterSource.DEFAULT}
    try:
        report = _read(options["plot_from"]) if options["plot_from"] else measure(options)
    except AwqError as error:
        raise click.ClickException(str(error)) from error
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        report.write(json_file)
    show(report)
    if docs:
        write_docs(report)
    for stem in [plot] * (plot is not None) + [DOCS / "cpu-kernels"] * docs:
        draw(report, stem)


def _read(path: Path) -> Report:
    try:
        return Report.read(path)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
