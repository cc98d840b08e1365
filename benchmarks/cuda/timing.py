"""How long work on a GPU takes, from a graph of many calls: launches then cost what they cost in a model."""

from collections.abc import Callable, Sequence
from statistics import median

import torch

WARM_L2 = 350e6  # bytes of weights that calls take turns with: several times the largest L2


def seconds_each(calls: Sequence[Callable[[], object]], rounds: int = 9) -> float:
    """Of one call, when all of them run one after the other: the median of `rounds` replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        graph.replay()
        taken = [_replay(graph, stream) for _ in range(rounds)]
    return median(taken) / len(calls)


def _replay(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record(stream)
    graph.replay()
    end.record(stream)
    stream.synchronize()
    return begin.elapsed_time(end) / 1e3


def copy_rate(size: int) -> float:
    """Bytes a second, read and written, of copies of `size` bytes on the GPU."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / seconds_each([lambda: target.copy_(source)] * 4)
