"""The command: options -> one task's request -> its result -> the terminal and the files asked for."""

import importlib
import os
import sys
from dataclasses import fields
from pathlib import Path

import click
from click.core import ParameterSource

from awq_cli import options
from qlinear.errors import AwqError, OptionError

# Imported when chosen: a task brings torch with it, and `--help` has no time for that.
MODULES = {
    "quantize": "awq_cli.tasks.quantize",
    "decode": "awq_cli.tasks.decode",
    "benchmark": "awq_cli.tasks.benchmark",
    "benchmark_long": "awq_cli.tasks.benchmark",
    "perplexity": "awq_cli.tasks.perplexity",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@options.every_option
@click.pass_context
def command(context: click.Context, **values) -> None:
    """Quantize a causal language model to 3 or 4 bits with AWQ, and run it.

    \b
    run_awq.py --task quantize --w_bit 4      make a checkpoint under quantized_models/
    run_awq.py --task decode --w_bit 4        answer prompts with it
    run_awq.py --task benchmark --w_bit 4     time it
    run_awq.py --task perplexity --w_bit 4 --dataset text.txt
    """
    _quiet_libraries()
    module = importlib.import_module(MODULES[values["task"]])
    _refuse_foreign_options(context, values["task"], {field.name for field in fields(module.Request)})
    for name in ("json_file", "csv_file"):
        _check_writable(name, values[name])
    _set_threads(values["num_torch_threads"])
    from awq_cli import console

    request = module.Request(**{field.name: values[field.name] for field in fields(module.Request)})
    with console.Console() as screen:
        result = module.run(request, screen)
        screen.show(result)
    console.write_files(result, values["json_file"], values["csv_file"])


# Options the command itself sees to, whatever the task.
OF_THE_COMMAND = {"task", "num_torch_threads", "json_file"}


def _refuse_foreign_options(context: click.Context, task: str, understood: set[str]) -> None:
    if task.startswith("benchmark"):
        understood = understood | {"csv_file"}
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.name not in understood | OF_THE_COMMAND:
            raise OptionError(f"{parameter.opts[0]} means nothing for --task {task}; leave it out")


def _check_writable(name: str, path: str | None) -> None:
    """Before hours of work: whether the result can be written where it was asked for."""
    if path is None:
        return
    option = "--" + name.removesuffix("_file")
    if Path(path).is_dir():
        raise OptionError(f"{option} {path} is a directory; name a file")
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise OptionError(f"{option} {path}: there is no directory {folder}")
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise OptionError(f"{option} {path} cannot be written: no permission")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _quiet_libraries() -> None:
    """What goes wrong is said once, by us: not by a library's warning before it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> None:
    try:
        command.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except AwqError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
