"""Multiple-choice tasks through the lm-eval library: its questions, prompts, shots and metrics; our decoders."""

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from awq_cli.questions.files import LAYOUTS, read_rows
from engine.model import Model
from engine.scoring import Scorer
from engine.text import check_rows, encode
from qlinear.errors import OptionError
from qlinear.progress import Watcher, steps

# Task -> the folder of lm_eval/tasks that defines it: reading all of them takes a while.
FOLDERS = {"truthfulqa_mc2": "truthfulqa", "winogrande": "winogrande", "arc_challenge": "arc"}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Answered:
    """One metric of one task; stderr: None where there is only one question."""

    task: str
    metric: str
    value: float
    stderr: float | None
    questions: int
    shots: int


def require_library(tasks: Sequence[str]) -> None:
    """Raise `OptionError` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise OptionError(f"--tasks {','.join(tasks)} needs the lm-eval library; install it with: pip install lm-eval")


def load_tasks(tasks: Sequence[str], eval_data: str | None) -> dict[str, object]:
    """lm-eval's own tasks by name, with its data from the hub or with that of a local directory.

    Raises `OptionError` for local files that are missing or malformed, and where the hub cannot be reached.
    """
    rows = {task: read_rows(Path(eval_data), task) for task in tasks} if eval_data is not None else {}
    with _quiet():
        import lm_eval.tasks

        folders = [Path(lm_eval.tasks.__file__).parent / FOLDERS[task] for task in tasks]
        manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
        if eval_data is not None:
            local = [{"task": task, "custom_dataset": _dataset(task, rows[task])} for task in tasks]
            return manager.load({"group": "local", "task": local})["tasks"]
        try:
            return manager.load(list(tasks))["tasks"]
        except Exception as error:  # the hub's client raises its own errors, and those of every layer below it
            raise OptionError(
                f"the questions of {','.join(tasks)} could not be fetched from the hub ({type(error).__name__}); "
                f"without a network, give local files: --eval_data DIR"
            ) from error


def _dataset(task: str, rows: list[dict]):
    """What lm-eval calls for a task's data: the rows as the split it asks, and other splits with nothing in them."""

    def splits(**_) -> dict:
        from datasets import Dataset

        given = Dataset.from_list(rows)
        return {name: given if name == LAYOUTS[task].split else given.select([]) for name in SPLITS}

    return splits


def answer(tasks: dict[str, object], model: Model, limit: int | None, what: str, watch: Watcher) -> list[Answered]:
    """Every question of the tasks, or the first `limit` of each; `what` names the model to who watches."""
    with _quiet():
        from lm_eval.evaluator import evaluate

        asked = _language_model(model, what, watch)
        out = evaluate(asked, {"tasks": tasks}, limit=limit, log_samples=False)
    answered = []
    for name, task in tasks.items():
        figures, count = out["results"][name], out["n-samples"][name]["effective"]
        for metric in task.aggregation():
            value, stderr = figures[f"{metric},none"], figures[f"{metric}_stderr,none"]
            known = None if isinstance(stderr, str) else float(stderr)  # "N/A"
            answered.append(Answered(name, metric, float(value), known, count, out["n-shot"][name]))
    return answered


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


def _language_model(model: Model, what: str, watch: Watcher):
    """The model as lm-eval's tasks ask it; only log-likelihoods are ever asked of it here."""
    from lm_eval.api.model import TemplateLM

    tokenizer = model.tokenizer

    class Asked(TemplateLM):
        eot_token_id = tokenizer.eos_token_id
        prefix_token_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

        def tok_encode(self, string, add_special_tokens=None, **_) -> list[int]:
            tokens = encode(tokenizer, string, special=add_special_tokens is not False)
            check_rows(tokenizer, tokens, model.vocabulary)
            return tokens.tolist()

        def _encode_pair(self, context, continuation) -> tuple[list[int], list[int]]:
            """As lm-eval parts them, its spaces at the join with what follows."""
            return _parted(self.tok_encode(context + continuation), len(self.tok_encode(context.rstrip())))

        def loglikelihood(self, requests, disable_tqdm=True):
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
            pairs = [_fitted(*request, self.prefix_token_id, model.max_positions) for request in requests]
            longest = max(len(context) + len(continuation) - 1 for context, continuation in pairs)
            scorer = Scorer(model.decoder(longest, rewinds=True))
            return [scorer.log_likelihood(*pair) for pair in steps(pairs, len(pairs), what, watch)]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def generate_until(self, requests, disable_tqdm=False):
            raise NotImplementedError

    return Asked()


def _parted(whole: list[int], context: int) -> tuple[list[int], list[int]]:
    """A question's tokens and its answer's, of which there is one at least: a token may span the join of both."""
    at = max(0, min(context, len(whole) - 1))
    return whole[:at], whole[at:]


def _fitted(
    texts: tuple[str, str], context: list[int], continuation: list[int], prefix: int | None, limit: int | None
) -> tuple[list[int], list[int]]:
    """A context too long for the model is cut at its left, as lm-eval does; the last token is not read itself.

    prefix: the token that stands for an empty context. Raises `OptionError` where one token of context is too many.
    """
    if not context and prefix is not None:
        context = [prefix]
    answer = f"{texts[1][:40]!r}"
    if not context or not continuation:
        raise OptionError(f"--tasks: the answer {answer} cannot be asked for: it has no tokens, or none before it")
    if limit is not None and len(continuation) > limit:
        raise OptionError(
            f"--tasks: an answer of {len(continuation)} tokens, {answer} and so on, has no room in the model's context "
            f"of {limit}; leave its task out"
        )
    surplus = 0 if limit is None else max(0, len(context) + len(continuation) - 1 - limit)
    return context[surplus:], continuation
