"""The CPU engine beside its peers and beside what the machine can do at best, in one run.

\b
    python -m benchmarks.cpu --json cpu.json --docs       everything, on an otherwise idle machine
    python -m benchmarks.cpu --quick                      a short look: one shape, one small model
    python -m benchmarks.cpu --plot_from cpu.json --docs  tables and pictures again, from saved rows

Ours and theirs alternate in rounds: one linear layer over M rows of activations on several shapes, then whole models
against llama.cpp. A peer that is not installed is named and left out.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import click
import torch
from click.core import ParameterSource

from benchmarks.decode import Race, run
from benchmarks.kernels import peers, sweep
from benchmarks.models import MODELS, entries
from benchmarks.plots import draw
from benchmarks.roofs import Roof, roofs
from benchmarks.rows import Report
from benchmarks.tables import DOCS, show, write_docs
from qlinear.backends.cpu import CpuBackend

DEFAULT_SHAPE = "4096x4096"
SHAPES = f"{DEFAULT_SHAPE},11008x4096,4096x11008,32000x4096,5632x2048"
SHAPE_ROWS = (1, 128, 512)
SWEEP = "1,2,4,8,16,32,64,128,256,512,1024"
LLAMA = "CMAKE_ARGS=-DGGML_NATIVE=on pip install --no-binary llama-cpp-python llama-cpp-python"
NEEDED_GB = {"7b": 14}  # free memory: two engines and their files
QUICK = dict(shapes="", sweep_rows="1,16,128", seconds=1.0, end_to_end="smollm2", rounds=2, starts=1)


def machine(threads: int, llama: str | None) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {"torch": torch.__version__.split("+")[0]}
    if "onnxruntime4" in peers():
        versions["ONNX Runtime (ORT)"] = version("onnxruntime")
    if llama:
        versions["llama.cpp through llama-cpp-python"] = llama
    isa = CpuBackend().name.removeprefix("cpu/")
    return {"processor": processor, "threads": threads, "instruction set": isa, "versions": versions}


def llama_version(python: str) -> str | None:
    """That of llama-cpp-python in another interpreter, or None."""
    command = [python, "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def say(text: str) -> None:
    click.echo(text, err=True)


def linears(report: Report, shapes: str, sweep_rows: str, group_size: int, seconds: float, limits: list[Roof]) -> None:
    """Every M on the default shape, a few M on the others."""
    if "onnxruntime4" not in peers():
        say("ONNX Runtime is left out: pip install -c constraints.txt -e '.[bench]'")
    jobs = {shape: set(SHAPE_ROWS) for shape in shapes.split(",") if shape}
    jobs.setdefault(DEFAULT_SHAPE, set()).update(int(m) for m in sweep_rows.split(",") if m)
    for shape, all_m in jobs.items():
        n, k = map(int, shape.split("x"))
        for rows in sweep(n, k, sorted(all_m), group_size, limits, seconds):
            report.rows += rows
            speeds = (f"{row.impl} {row.seconds * 1e6:.0f} us" for row in rows if row.what == "linear")
            say(f"{shape} M={rows[0].m}: " + ", ".join(speeds))


def models(report: Report, names: list[str], work: Path, race: Race, llama: bool, limits: list[Roof]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        free = memory_available() / 1e9
        if free < NEEDED_GB.get(name, 0):
            say(f"{name} is left out: it needs {NEEDED_GB[name]} GB of free memory, {free:.0f} are there")
            continue
        say(f"{name}: files in {work}")
        rows, starts = run(name, entries(name, work, llama), race, limits)
        report.rows += rows
        report.starts += starts


def memory_available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure(options: dict) -> Report:
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    llama = llama_version(options["llama_python"])
    names = [name for name in options["end_to_end"].split(",") if name]
    if names and llama is None:
        say(f"llama.cpp is left out: {options['llama_python']} has no llama_cpp (see --llama_python); {LLAMA}")
    report = Report(machine(options["threads"], llama))
    limits = roofs()
    linears(report, *(options[name] for name in ("shapes", "sweep_rows", "group_size", "seconds")), limits)
    race = Race(*(options[name] for name in ("prompt", "new", "rounds", "starts", "threads", "llama_python")))
    with tempfile.TemporaryDirectory() as directory:
        models(report, names, Path(options["work"] or directory).resolve(), race, llama is not None, limits)
    return report


def known_models(_, __, value: str) -> str:
    for name in value.split(","):
        if name and name not in MODELS:
            raise click.BadParameter(f"{name}: has to be among {','.join(MODELS)}")
    return value


@click.command(help=__doc__)
@click.option("--threads", default=2, show_default=True)
@click.option("--group_size", default=128, show_default=True, help="Of the linear layers.")
@click.option("--shapes", default=SHAPES, show_default=True, help=f"NxK, each at M = {SHAPE_ROWS}; may be empty.")
@click.option("--sweep_rows", default=SWEEP, show_default=True, help=f"M on {DEFAULT_SHAPE}; may be empty.")
@click.option("--seconds", default=6.0, show_default=True, help="For each shape and M.")
@click.option("--end_to_end", default=",".join(MODELS), show_default=True, callback=known_models, help="Models.")
@click.option("--prompt", default=512, show_default=True, help="Tokens of the models' prompt.")
@click.option("--new", default=64, show_default=True, help="Tokens after it.")
@click.option("--rounds", default=7, type=click.IntRange(2), show_default=True, help="Of each model, after a warm-up.")
@click.option("--starts", default=3, show_default=True, help="Fresh processes of each contestant.")
@click.option("--llama_python", default=sys.executable, help="An interpreter that has llama-cpp-python.")
@click.option("--work", help="Keep the models' files in this directory (about 10 GB) and use them again.")
@click.option("--quick", is_flag=True, help="One shape, three M, one small model, two rounds.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write what was measured.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the linear layers to this name .png and .svg.")
@click.option(
    "--plot_from",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: read a --json file.",
)
@click.option("--docs", is_flag=True, help="Rewrite the tables and pictures of docs/cpu.md.")
def main(quick: bool, json_file: Path | None, plot: Path | None, plot_from: Path | None, docs: bool, **options) -> None:
    if quick:
        source = click.get_current_context().get_parameter_source
        options |= {name: value for name, value in QUICK.items() if source(name) is ParameterSource.DEFAULT}
    report = _read(plot_from) if plot_from else measure(options)
    if json_file:
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
