"""Ranks, here as threads: what they share comes out bit for bit as it does of one alone."""

import threading
from collections.abc import Callable

import pytest
import torch

from scales.awq import quantize_block, watched_modules
from scales.calls import Call, record_calls
from scales.observe import Held, observe_block, observe_inputs
from scales.ranks import ALONE, Ranks, spread
from scales.search import Rounding
from tests.tiny import VOCAB, known_of, tiny_model


class Threads(Ranks):
    """shared: what all of them see; each waits for the others where ranks speak with each other."""

    def __init__(self, rank: int, size: int, shared: dict, barrier: threading.Barrier):
        self.rank, self.size, self._shared, self._barrier = rank, size, shared, barrier

    def each(self, mine):
        self._shared[self.rank] = mine
        self._barrier.wait(60)
        found = [self._shared[rank] for rank in range(self.size)]
        self._barrier.wait(60)
        yield from found

    def told(self, value):
        return self.swap(value)[0]


def together(size: int, work: Callable) -> list:
    """What each of `size` ranks makes of the work."""
    shared, barrier, found = {}, threading.Barrier(size), [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, size, shared, barrier))
        except BaseException as error:
            barrier.abort()
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in found:
        if isinstance(value, BaseException):
            raise value
    return found


def seen_by(ranks: Ranks, model_type: str, count: int):
    """A block of a model of this rank's own, and what it shows on this rank's share of `count` samples."""
    model = tiny_model(model_type, hidden_size=320)
    blocks = list(model.model.layers)
    tokens = torch.randint(3, VOCAB, (count, 9), generator=torch.Generator().manual_seed(5))
    hidden, calls = record_calls(model, blocks, tokens)
    held = Held([hidden[index] for index in ranks.mine(count)], count, ranks)
    anatomy = known_of(model, blocks[0])
    linears = {name: blocks[0].get_submodule(name) for name in anatomy.linears}
    seen = observe_block(blocks[0], linears, watched_modules(anatomy), held, calls[0], 3)
    return model, blocks[0], anatomy, held, calls[0], seen


@pytest.mark.parametrize(("size", "count"), [(2, 7), (3, 7), (4, 4), (5, 11)])
def test_statistics_are_those_of_one(size, count):
    """Of 320 inputs, so that there are two panels a Gram matrix, of 256 and 64."""
    *_, alone = seen_by(ALONE, "llama", count)
    for *_, held, _, seen in together(size, lambda ranks: seen_by(ranks, "llama", count)):
        assert list(seen.statistics) == list(alone.statistics)
        for name, known in alone.statistics.items():
            found = seen.statistics[name]
            assert found.gram.equal(known.gram) and found.sum_abs.equal(known.sum_abs), name
            assert found.tokens == known.tokens == count * 9
        assert len(seen.outputs) == len(held.hidden)
        for name, samples in alone.samples.items():
            pairs = zip(samples, seen.samples[name], strict=True)
            assert all(ours[0].equal(theirs[0]) and ours[2].equal(theirs[2]) for ours, theirs in pairs)
        assert seen.statistics["self_attn.q_proj"] is seen.statistics["self_attn.k_proj"]


def test_outputs_are_each_ranks_own():
    *_, alone = seen_by(ALONE, "llama", 5)
    first, second = (seen.outputs for *_, seen in together(2, lambda ranks: seen_by(ranks, "llama", 5)))
    assert [x.equal(y) for x, y in zip(first, alone.outputs[::2], strict=True)] == [True] * 3
    assert [x.equal(y) for x, y in zip(second, alone.outputs[1::2], strict=True)] == [True] * 2


def test_inputs_alone_are_observed_the_same():
    def statistics(ranks: Ranks):
        _, block, anatomy, held, call, _ = seen_by(ranks, "qwen3", 7)
        linears = {name: block.get_submodule(name) for name in anatomy.linears}
        return observe_inputs(block, linears, held, call.of(ranks.mine(7)))

    alone = statistics(ALONE)
    for found in together(3, statistics):
        assert all(found[name].gram.equal(known.gram) for name, known in alone.items())


def test_the_search_finds_what_one_finds():
    def searched(ranks: Ranks):
        model, block, anatomy, *_, seen = seen_by(ranks, "llama", 6)

        def quantize(weight):
            scale = weight.abs().amax(-1, keepdim=True) / 7
            return (weight / scale).round() * scale

        roundings = dict.fromkeys(anatomy.linears, Rounding(quantize, 32))
        return quantize_block(block, anatomy, model.config, seen, roundings, ranks=ranks)

    alone = searched(ALONE)
    assert alone.scales and alone.clips
    for found in together(3, searched):
        assert (found.losses, found.error_rtn, found.error_awq) == (alone.losses, alone.error_rtn, alone.error_awq)
        for (edge, vector), (other, expected) in zip(found.scales, alone.scales, strict=True):
            assert edge.prev == other.prev and vector.equal(expected)
        assert found.clips.keys() == alone.clips.keys()
        assert all(found.clips[name].equal(clip) for name, clip in alone.clips.items())


def test_work_is_spread_by_its_cost():
    assert spread([1, 9, 4, 4, 1], 2) == [1, 0, 1, 1, 0]
    assert spread([1.0] * 5, 2) == [0, 1, 0, 1, 0]
    assert spread([3.0, 2.0], 4) == [0, 1]
    assert spread([], 3) == []


def test_each_piece_is_done_once_and_known_to_all():
    done = []

    def work(ranks: Ranks) -> list[int]:
        def square(index: int) -> int:
            done.append(index)
            return index**2

        return ranks.share([1.0, 5.0, 2.0, 2.0], square)

    assert together(3, work) == [[0, 1, 4, 9]] * 3 and sorted(done) == [0, 1, 2, 3]
    assert ALONE.share([1.0, 5.0], lambda index: index + 1) == [1, 2]


def test_calls_that_differ_are_numbered_anew():
    rows = tuple(Call((number,), {}) for number in range(4))
    whole = Call((0,), {}, rows=rows)
    assert [whole.of([1, 3]).at(place).args for place in range(2)] == [(1,), (3,)]
    assert Call((7,), {}).of([1, 3]).at(1).args == (7,)


@pytest.mark.parametrize(("size", "count"), [(2, 3), (3, 7), (4, 2)])
def test_samples_come_back_in_order(size, count):
    """Rank 1 of 2 has samples 1, 3, ... of nine; the first few of all are asked for."""
    held = lambda ranks: [f"sample {index}" for index in ranks.mine(9)]  # noqa: E731
    expected = [f"sample {index}" for index in range(count)]
    assert together(size, lambda ranks: ranks.in_order(held(ranks), count)) == [expected] * size
