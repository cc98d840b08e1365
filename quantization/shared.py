"""What quantizing takes when it is shared among several ranks: hours, and what goes over the network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantization.amounts import Seconds, Source, Text
from scales.ranks import spread
from scales.search import N_CONFIRMED, N_RATIOS
from scales.statistics import PANEL

RANKS = (1, 2, 4, 8, 16)
CODE_BYTES, FLOAT32_BYTES = 1, 4


@dataclass(frozen=True)
class Shared:
    """memory_bytes: of each rank, at most; received_bytes: by each rank, over the whole run."""

    ranks: int
    seconds: float
    memory_bytes: int
    received_bytes: int


def shared(
    ranks: int, times: Sequence[Seconds], inputs: Sequence[Sequence[Source]], text: Text, memory: Callable[[int], int]
) -> Shared:
    """times, inputs: of each block; memory: what a process takes that holds so many samples."""
    known: dict[int, tuple[float, float]] = {}
    for each, sources in zip(times, inputs, strict=True):
        if id(sources) not in known:
            known[id(sources)] = _seconds(ranks, each, text), _received(ranks, sources, text)
    totals = [known[id(sources)] for sources in inputs]
    held = memory(-(-text.samples // ranks)) + (max(_messages(sources, text) for sources in inputs) if ranks > 1 else 0)
    return Shared(ranks, sum(seconds for seconds, _ in totals), held, int(sum(received for _, received in totals)))


def _messages(sources: Sequence[Source], text: Text) -> int:
    """What is held of the larger messages: one sent, one received and one taken apart."""
    seen = text.seqlen * sum(source.share * source.width for source in sources)
    return int(3 * FLOAT32_BYTES * max(seen, PANEL * max(source.width for source in sources)))


def _seconds(ranks: int, each: Seconds, text: Text) -> float:
    """Samples, entries of Gram matrices, candidates and linears are whole: the rank with the most sets the pace."""
    samples = -(-text.samples // ranks) / text.samples
    tried = -(-N_RATIOS // ranks) / N_RATIOS
    confirmed = -(-(N_CONFIRMED + 1) // ranks) / (N_CONFIRMED + 1)
    owners = spread(each.solve, ranks)
    solved = max(
        sum(cost for cost, owner in zip(each.solve, owners, strict=True) if owner == rank) for rank in range(ranks)
    )
    return (
        each.forward * samples + each.statistics / ranks + each.search * max(tried, confirmed) + solved + each.distill
    )


def _received(ranks: int, sources: Sequence[Source], text: Text) -> float:
    """What the linears of the other ranks' samples saw, the parts of Gram matrices and the codes that others made."""
    seen = sum(text.tokens * source.share * source.width for source in sources) * FLOAT32_BYTES
    grams = sum(source.width**2 for source in sources) / 2 * FLOAT32_BYTES
    codes = sum(source.weights for source in sources) * CODE_BYTES
    return (seen + grams + codes) * (ranks - 1) / ranks
