"""Tasks of the lm-eval library: its questions, prompts, shots and metrics; our decoders."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

from awq_cli.questions.files import LAYOUTS, read_rows
from engine.model import Model
from qlinear.errors import AwqError, OptionError, is_out_of_memory
from qlinear.progress import Watcher

# Task -> the folder of lm_eval/tasks that defines it: reading all of them takes a while. Their questions may lie in
# files of plain layouts too.
FOLDERS = {"truthfulqa_mc2": "truthfulqa", "winogrande": "winogrande", "arc_challenge": "arc"}
OF_PROBABILITIES = "truthfulqa_mc2"  # the share of the right answers in the probability of all
SPLITS = ("train", "validation", "test")
_LOCAL = "local"  # the group of tasks whose questions lie in files here
_RUNS_CODE = "HF_ALLOW_CODE_EVAL"  # of the library that runs it
_OF_THE_HUB = ("huggingface_hub", "datasets", "httpx", "requests", "urllib3")  # whose errors are of fetching
_SEED = 1234  # of the answered questions; lm-eval's own


@dataclass(frozen=True)
class Answered:
    """One metric of one task; stderr: None where there is only one question; shots: None of a group."""

    task: str
    metric: str
    value: float
    stderr: float | None
    questions: int
    shots: int | None


@dataclass(frozen=True)
class Asked:
    """tasks: names of tasks, groups or tags of lm-eval's; shots: answered questions before each, None: as each task's
    configuration says; chat: whether questions go through the model's chat template; limit: how many of each task are
    asked, None: all.
    """

    tasks: tuple[str, ...]
    shots: int | None = None
    chat: bool = False
    limit: int | None = None


def require_library(tasks: Sequence[str]) -> None:
    """Raise `OptionError` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise OptionError(f"--tasks {','.join(tasks)} needs the lm-eval library; install it with: pip install lm-eval")


def load_tasks(asked: Asked, eval_data: str | None) -> dict[str, Any]:
    """lm-eval's own tasks by name, with its data from the hub or with that of a local directory: "tasks" and "groups".

    A directory may define tasks of its own, as lm-eval's do, in .yaml files. Raises `OptionError` for local files that
    are missing or malformed, for tasks that nobody knows, and where the hub cannot be reached.
    """
    local = [task for task in asked.tasks if task in FOLDERS] if eval_data is not None else []
    rows = {task: read_rows(Path(eval_data), task) for task in local}
    others = [task for task in asked.tasks if task not in local]
    if local and asked.shots:
        raise OptionError(f"--shots: the files of {','.join(local)} hold no answered questions to put before others")
    with _quiet():
        manager = _manager(asked.tasks, eval_data)
        given = [{"task": task, "custom_dataset": _dataset(task, rows[task])} for task in local]
        wanted = ([{"group": _LOCAL, "task": given}] if given else []) + others
        with _told_of_loading(others):
            loaded = manager.load(wanted)
    for name, task in loaded["tasks"].items():
        _prepare(name, task, asked.shots)
    return loaded


@contextmanager
def _told_of_loading(tasks: Sequence[str]) -> Iterator[None]:
    """The hub's client raises its own errors, and those of every layer below it."""
    named = f"the questions of {','.join(tasks)} could not be"
    try:
        yield
    except AwqError:
        raise
    except ModuleNotFoundError as error:
        raise OptionError(
            f"--tasks {','.join(tasks)} needs a library that is not installed: {_one_line(error)}"
        ) from error
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_OF_THE_HUB):
            raise OptionError(f"{named} read: {type(error).__name__}: {_one_line(error)}") from error
        raise OptionError(
            f"{named} fetched from the hub ({type(error).__name__}); without a network, give local files: "
            f"--eval_data DIR"
        ) from error


def _manager(tasks: Sequence[str], eval_data: str | None) -> Any:
    """Raises `OptionError` for a task that it does not know."""
    import lm_eval.tasks

    library = Path(lm_eval.tasks.__file__).parent
    plain = all(task in FOLDERS for task in tasks)
    folders = [library / FOLDERS[task] for task in tasks] if plain else []
    own = [Path(eval_data)] if eval_data is not None and any(Path(eval_data).glob("*.yaml")) else []
    manager = lm_eval.tasks.TaskManager(include_path=[*folders, *own], include_defaults=not plain)
    for task in tasks:
        if task not in manager.all_tasks:
            near = get_close_matches(task, manager.all_tasks, 3)
            meant = f"did you mean {', '.join(near)}?" if near else "docs/evaluation.md says which there are"
            raise OptionError(f"--tasks: there is no task {task!r}; {meant}")
    return manager


def _prepare(name: str, task: Any, shots: int | None) -> None:
    """As lm-eval's own command does: a task whose configuration says 0 shots has none, whatever is asked for."""
    if getattr(task, "UNSAFE_CODE", False) and os.environ.get(_RUNS_CODE) != "1":
        raise OptionError(
            f"--tasks: {name} runs the code that the model writes, on this machine; in a place where that may do no "
            f"harm, set {_RUNS_CODE}=1"
        )
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=_SEED)
    if name == OF_PROBABILITIES:
        task.process_results = partial(_of_shifted, task.process_results)


def _of_shifted(process: Callable[[Any, list], Any], question: Any, results: list[tuple[float, bool]]) -> Any:
    """Of the answers to a question, only how likely they are to each other counts: none is to be beyond all numbers."""
    most = max(likelihood for likelihood, _ in results)
    return process(question, [(likelihood - most, greedy) for likelihood, greedy in results])


def check_fits(loaded: dict[str, Any], model: Model) -> None:
    """Raise `OptionError` for a task whose answers a model has no room for."""
    for task in loaded.get("tasks", {}).values():
        if task.get_config("output_type") == "generate_until":
            from awq_cli.questions.asked import check_room

            check_room(model, task.get_config("generation_kwargs") or {})


def _one_line(error: Exception) -> str:
    """Of an error of a library, which may be pages long."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _dataset(task: str, rows: list[dict]):
    """What lm-eval calls for a task's data: the rows as the split it asks, and other splits with nothing in them."""

    def splits(**_) -> dict:
        from datasets import Dataset

        given = Dataset.from_list(rows)
        return {name: given if name == LAYOUTS[task].split else given.select([]) for name in SPLITS}

    return splits


def answer(loaded: dict[str, Any], asked: Asked, model: Model, what: str, watch: Watcher) -> list[Answered]:
    """Every question of the tasks, or the first of each; `what` names the model to who watches."""
    with _quiet():
        from lm_eval.evaluator import evaluate

        from awq_cli.questions.asked import LanguageModel

        groups = {name: group for name, group in loaded["groups"].items() if name != _LOCAL}
        with _faults_of(asked.tasks):
            out = evaluate(
                LanguageModel(model, what, watch), {**loaded, "groups": groups}, limit=asked.limit, log_samples=False,
                apply_chat_template=asked.chat, fewshot_as_multiturn=asked.chat, confirm_run_unsafe_code=True,
            )  # fmt: skip
    counts = {name: count["effective"] for name, count in out["n-samples"].items()}
    names = loaded["tasks"]
    by_task = {name: list(_answered(name, out["results"][name], counts[name], out["n-shot"][name])) for name in names}
    found = []
    for name, figures in out.get("groups", {}).items():
        inside = [task.task_name for task in groups[name].get_all_tasks()]
        for answered in _answered(name, figures, 0, None):
            key = answered.metric
            of_metric = [task for task in inside if any(key == one.metric for one in by_task[task])]
            found.append(replace(answered, questions=sum(counts[task] for task in of_metric or inside)))
    return found + [answered for name in names for answered in by_task[name]]


@contextmanager
def _faults_of(tasks: Sequence[str]) -> Iterator[None]:
    """What goes wrong in tasks that are not known to be sound is theirs: a metric that is not there, say."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AwqError) or is_out_of_memory(error) or all(task in FOLDERS for task in tasks):
            raise
        raise OptionError(
            f"--tasks {','.join(tasks)}: lm-eval cannot ask them: {type(error).__name__}: {_one_line(error)}"
        ) from error


def _answered(name: str, figures: dict[str, Any], questions: int, shots: int | None) -> Iterator[Answered]:
    """Every metric that is a number; one that is taken of a part of the answer has that part's name behind it."""
    for key, value in figures.items():
        metric, comma, part = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr = figures.get(f"{metric}_stderr,{part}")
        known = float(stderr) if _is_number(stderr) else None  # "N/A"
        yield Answered(name, metric if part == "none" else f"{metric} ({part})", float(value), known, questions, shots)


def _is_number(value: object) -> bool:
    return isinstance(value, SupportsFloat)


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval draws a bar of its own and warns whoever writes tasks; no argument of it turns either off."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    import lm_eval.api.task as library

    bar, library.tqdm = library.tqdm, lambda items, **_: items
    try:
        yield
    finally:
        logger.setLevel(level)
        library.tqdm = bar
