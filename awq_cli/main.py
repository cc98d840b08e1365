"""The command: options -> one task's request -> its result -> the terminal and the files asked for."""

import importlib
import os
import resource
import sys
import warnings
from typing import Any

import click
from click.core import ParameterSource

from awq_cli import ending, groups, idle, waiting
from awq_cli.requests import build, options_of
from qlinear.errors import OptionError
from qlinear.process import rank_and_size

# Options whose values may name files.
READ = ("model_name", "checkpoint", "draft", "dataset", "calib_data", "eval_data", "scales", "prompt", "system")
# Options that may name a file or a directory, of which a shell leaves `~` as it is in `--output=~/out`.
PATHS = ("model_name", "checkpoint", "draft", "dataset", "calib_data", "eval_data", "scales", "output", "json_file",
         "csv_file")  # fmt: skip
# Imported when chosen: a task brings torch with it, and `--help` has no time for that.
MODULES = {
    "quantize": "awq_cli.tasks.quantize",
    "decode": "awq_cli.tasks.decode",
    "chat": "awq_cli.tasks.chat",
    "serve": "awq_cli.tasks.serve",
    "benchmark": "awq_cli.tasks.benchmark",
    "benchmark_long": "awq_cli.tasks.benchmark",
    "perplexity": "awq_cli.tasks.perplexity",
    "evaluate": "awq_cli.tasks.evaluate",
    "export": "awq_cli.tasks.export",
}

# Of addresses: torch and transformers are loaded in 0.9 GB of them.
LEAST_MEMORY = 10**9

# Options the command itself sees to, whatever the task.
OF_THE_COMMAND = {"task", "num_torch_threads", "json_file", "quiet"}

# Options of text that stands for itself, none of it too.
MAY_BE_EMPTY = {"system"}


@click.command(
    cls=groups.GroupedCommand,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": lambda name: name.replace("-", "_"),  # --group-size is --group_size
    },
)
@groups.every_option
@click.pass_context
def command(call: click.Context, **values) -> None:
    """Quantize a causal language model to 3 or 4 bits with AWQ, and run it.

    \b
    run_awq.py --task quantize --w_bit 4   make a checkpoint in quantized_models/
    run_awq.py --task chat --w_bit 4       talk with it
    run_awq.py --task serve --w_bit 4      answer over HTTP, as OpenAI does
    run_awq.py --task decode --w_bit 4     answer prompts with it
    run_awq.py --task benchmark --w_bit 4  time it
    run_awq.py --task perplexity --dataset text.txt
    run_awq.py --task evaluate --w_bit 4   compare it with the float model
    run_awq.py --task export --w_bit 4 --format awq
    """
    _check_memory()
    _check_directory()
    _set_environment()
    rank, size = rank_and_size()
    if size > 1 and values["task"] != "quantize":
        raise OptionError(f"WORLD_SIZE={size}: only --task quantize is shared among ranks; start one process")
    leads = rank == 0
    module = importlib.import_module(MODULES[values["task"]])
    given = {
        parameter.name: groups.spelled(parameter, values[parameter.name])
        for parameter in call.command.params
        if call.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }
    _refuse_foreign_options(given, values["task"], options_of(module.Request))
    _refuse_empty_options(given, values)
    _refuse_idle_options(given, values)
    values |= {name: os.path.expanduser(path) for name in PATHS if isinstance(path := values[name], str)}
    from awq_cli import console, files

    if leads:
        read = [text for name in READ for text in _listed(values.get(name))]
        files.check_results({groups.NAMES[name]: values[name] for name in ("json_file", "csv_file")}, read)
    _set_threads(values["num_torch_threads"])
    request = build(module.Request, values)
    with console.Console(values["quiet"] or not leads) as screen:
        result = module.run(request, screen.watch)
        if not leads:
            return
        files.write_files(result, values["json_file"], values["csv_file"])  # whether or not anybody reads what is shown
        screen.show(result)
        if result.task == "quantize" and screen.is_watched:
            from awq_cli import first_answer

            first_answer.show(result, values["trust_remote_code"], screen.watch)


def _listed(value: Any) -> tuple[str, ...]:
    """The values of an option that may be given several times, or once, or not."""
    return value if isinstance(value, tuple) else (value,) * (value is not None)


def _refuse_foreign_options(given: dict[str, str], task: str, understood: set[str]) -> None:
    """given: the parameters on the command line, each with its option as it is spelled there."""
    if task.startswith("benchmark"):
        understood = understood | {"csv_file"}
    for name, option in given.items():
        if name not in understood | OF_THE_COMMAND:
            raise OptionError(f"{option} means nothing for --task {task}; leave it out")


def _refuse_empty_options(given: dict[str, str], values: dict[str, Any]) -> None:
    """A shell's variable that is not set would stand for the default, or for the directory that it is called in."""
    for name, option in given.items():
        if values[name] == "" and name not in MAY_BE_EMPTY:
            raise OptionError(f"{option} is empty; give it a value, or leave it out")


def _refuse_idle_options(given: dict[str, str], values: dict[str, Any]) -> None:
    for holds, when, names in idle.IDLE:
        for name in names:
            if name in given and holds(values):
                raise OptionError(f"{given[name]} means nothing {when}; leave it out")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        from qlinear.backends.cpu import native

        native.set_threads(threads)


def _check_memory() -> None:
    """Libraries that find no room as they are loaded may not even end."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and most < LEAST_MEMORY:
        raise OptionError(
            f"the memory of this process is limited to {most / 1e9:.2g} GB (ulimit -v), and what it loads alone "
            f"takes {LEAST_MEMORY / 1e9:.2g} GB; raise the limit"
        )


def _check_directory() -> None:
    """Where it is gone, libraries crash as they are loaded."""
    try:
        os.getcwd()
    except OSError as error:
        raise OptionError(f"the directory that this is called in is not there ({error.strerror}); go to one") from error


def _set_environment() -> None:
    """Before the libraries are loaded that read it.

    What goes wrong is said once, by us: not by a library's warning before it. And Intel's library, which torch
    multiplies with, makes the same sums at any number of threads, at no cost in time.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ.update(waiting.for_each_other())


def _open_closed_streams() -> None:
    """Where the shell closed one (`>&-`), so that no file that is opened later gets its number."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
            setattr(sys, name, open(number, "w", closefd=False))


def main() -> None:
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal may lack a letter of what a model writes
    with ending.one_line(), ending.once():
        command.main(standalone_mode=False)
        sys.stdout.flush()  # here, a pipe that is closed is no fault
