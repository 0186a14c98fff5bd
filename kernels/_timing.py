"""How long a kernel takes: under a CUDA graph, on inputs that no cache still holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

DISTINCT_BYTES = 250e6  # of inputs, five times the L2 of an H200
LEAST_CALLS = 24


def copies(size: int) -> int:
    """How many inputs of `size` bytes are needed for each to have left the cache when its turn comes again."""
    return max(2, -int(-DISTINCT_BYTES // size))


def seconds_per_call(calls: Sequence[Callable[[], object]], repeats: int = 30) -> float:
    """The median of `repeats` replays of one graph of all calls in turns, for one call.

    A graph has `LEAST_CALLS` or more, so that its own start, some microseconds, is not counted as theirs.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compile and allocate before the capture
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    rounds = -(-LEAST_CALLS // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) / 1e3 / (rounds * len(calls))
