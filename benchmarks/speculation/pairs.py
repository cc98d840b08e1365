"""Answers with and without proposals in turns, and what passes over several rows take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.speculation.texts import Ask
from benchmarks.table import Table
from engine.decoder import Decoder
from engine.drafting import Draft, Drafted, together
from engine.generate import generate, greedy
from engine.model import Model
from engine.sampling import sampler
from engine.templates import has_template

# Of the tokens a second without: of texts that repeat their prompt, and of others.
REPEATING_BAR, FREE_BAR = 2.0, 0.97
PAST = 200  # tokens before a pass whose time is taken


@dataclass(frozen=True)
class Row:
    """One text. plain, drafted: tokens a second of each pair's answers, without the first token; ratios: of wall time,
    and cpu_ratios of the processor's, pair by pair; bar: for the middle one of the ratios.
    """

    name: str
    tokens: int
    plain: list[float]
    drafted: list[float]
    ratios: list[float]
    cpu_ratios: list[float]
    draft: Drafted
    bar: float


@dataclass(frozen=True)
class _Answer:
    tokens: list[int]
    seconds: float
    cpu_seconds: float
    drafted: Drafted | None


def pairs(model: Model, asks: Sequence[Ask], new_tokens: int, repeats: int, bar: float) -> list[Row]:
    """Each text `repeats` times with and without, in turns. Raises `AssertionError` where the tokens differ."""
    chat, rows = has_template(model.tokenizer), []
    for ask in asks:
        prompt = model.encode_prompt(ask.prompt, chat)
        decoder = model.decoder(len(prompt) + new_tokens)
        draft, found = model.draft(decoder), []
        for number in range(1 + repeats):
            turns = (None, draft) if number % 2 else (draft, None)
            answers = {one is None: _answer(model, decoder, prompt, new_tokens, ask, one) for one in turns}
            if answers[True].tokens != answers[False].tokens:
                raise AssertionError(f"{ask.name}: the tokens are not those without proposals")
            found.append((answers[True], answers[False]))
        rows.append(_row(ask, found[1:], bar))  # the first to warm up, as a chat's second answer is
    return rows


def _answer(model: Model, decoder: Decoder, prompt: np.ndarray, new: int, ask: Ask, draft: Draft | None) -> _Answer:
    choose = greedy if ask.temperature is None else sampler(ask.temperature, seed=1)
    adjust, drafting = model.rules.for_text(len(prompt), new), draft and draft.for_text()
    written = generate(decoder, prompt, new, model.end_tokens, choose, adjust, drafting=drafting)
    tokens = [next(written).id]
    began, cpu_began = time.perf_counter(), time.process_time()
    tokens += [token.id for token in written]
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return _Answer(tokens, seconds, cpu_seconds, drafting and drafting.drafted)


def _row(ask: Ask, found: list[tuple[_Answer, _Answer]], bar: float) -> Row:
    count = len(found[0][0].tokens) - 1
    return Row(
        ask.name,
        count + 1,
        [count / plain.seconds for plain, _ in found],
        [count / drafted.seconds for _, drafted in found],
        [plain.seconds / drafted.seconds for plain, drafted in found],
        [plain.cpu_seconds / drafted.cpu_seconds for plain, drafted in found],
        together([drafted.drafted for _, drafted in found if drafted.drafted is not None]),
        bar,
    )


def pass_costs(decoder: Decoder, most: int, rounds: int) -> list[tuple[float, float]]:
    """Of passes over 1, 2, ... `most` rows, in passes over one of the same round: wall time, and the processor's."""
    text = np.random.default_rng(0).integers(100, decoder.vocabulary, PAST + most)
    for _ in decoder.read(text[:PAST], 0, 1):
        pass

    def read(rows: int) -> tuple[float, float]:
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in decoder.read(text[: PAST + rows - 1], PAST - 1, rows):
            pass
        return time.perf_counter() - began, time.process_time() - cpu_began

    found = [[read(rows) for rows in range(1, most + 1)] for _ in range(1 + rounds)][1:]
    return [
        tuple(median(turn[rows][kind] / turn[0][kind] for turn in found) for kind in (0, 1)) for rows in range(most)
    ]


def pairs_table(rows: Sequence[Row], title: str) -> Table:
    headings = ["text", "tokens", "without", "with", "times", "by CPU time", "accepted", "tokens a pass", "bar"]
    return Table(title, headings, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    rates = [f"{median(values):.1f}" for values in (row.plain, row.drafted)]
    ratios = [f"{median(values):.2f}" for values in (row.ratios, row.cpu_ratios)]
    accepted = f"{row.draft.accepted} of {row.draft.proposed}"
    return [row.name, str(row.tokens), *rates, *ratios, accepted, f"{row.draft.tokens_per_pass:.2f}", str(row.bar)]


def costs_table(costs: Sequence[tuple[float, float]], title: str) -> Table:
    headings = ["rows", *(str(rows) for rows in range(1, len(costs) + 1))]
    kinds = (("time", 0), ("CPU time", 1))
    return Table(title, headings, [[name, *(f"{cost[kind]:.2f}" for cost in costs)] for name, kind in kinds])
