"""What stands in for the inputs of experts that the calibration text hardly reached.

GPTQModel rounds experts that see less than half a percent of the tokens. Here only a starved expert's down projection
is rounded; gate and up, which read what all experts of the layer read, are solved with the inputs of all of them.
"""

from collections.abc import Sequence

import torch

from architectures.anatomy import numbers, template
from scales.statistics import InputStatistics, StandIn

# Of all tokens of the text; an expert that was given fewer is starved.
STARVED_SHARE = 0.005


def feed_starved(statistics: dict[str, InputStatistics], linears: dict[str, int], tokens: int) -> None:
    """Give every starved expert's linear statistics that are not its own, and say so in them.

    linears: in_features by local name; tokens: of the text. Statistics are of finished sums.
    """
    groups: dict[str, list[str]] = {}
    for name in linears:
        if numbers(name):
            groups.setdefault(template(name), []).append(name)
    first = _reading_the_layer(statistics, groups)
    pooled: dict[int, InputStatistics] = {}
    for pattern, names in groups.items():
        hungry = [name for name in names if _tokens(statistics, name) < STARVED_SHARE * tokens]
        if not hungry:
            continue
        fed = [name for name in names if _tokens(statistics, name)]
        for name in hungry:
            if pattern in first and fed:
                key = first[pattern]
                if key not in pooled:
                    pooled[key] = _sum([statistics[one] for one in fed])
                statistics[name] = pooled[key]
            else:
                statistics[name] = _blank(linears[name], _tokens(statistics, name))


def _tokens(statistics: dict[str, InputStatistics], name: str) -> int:
    seen = statistics.get(name)
    return seen.tokens if seen is not None and seen.stand_in is None else 0


def _reading_the_layer(statistics: dict[str, InputStatistics], groups: dict[str, list[str]]) -> dict[str, int]:
    """The templates of linears that read what their expert is given, and which of them read the same: gate and up."""
    first: dict[tuple[str, tuple[str, ...]], InputStatistics] = {}
    for name, seen in statistics.items():  # in the order of the calls
        if numbers(name):
            first.setdefault((template(name).partition("*")[0], numbers(name)), seen)
    inputs = {id(seen) for seen in first.values()}
    reading = [
        pattern for pattern, names in groups.items()
        if (seen := next((statistics[name] for name in names if name in statistics), None)) and id(seen) in inputs
    ]  # fmt: skip
    numbered = {prefix: index for index, prefix in enumerate(dict.fromkeys(p.partition("*")[0] for p in reading))}
    return {pattern: numbered[pattern.partition("*")[0]] for pattern in reading}


def _sum(parts: Sequence[InputStatistics]) -> InputStatistics:
    total = InputStatistics.empty(len(parts[0].gram))
    for part in {id(part): part for part in parts}.values():
        total.sum_abs += part.sum_abs
        total.gram += part.gram
        total.tokens += part.tokens
    total.stand_in = StandIn.LAYER
    return total


def _blank(in_features: int, tokens: int) -> InputStatistics:
    """Of nothing that is known: every channel alike, so that solvers round to nearest."""
    return InputStatistics(torch.ones(in_features), torch.eye(in_features), tokens, StandIn.NONE)
