"""How long a kernel takes: under a CUDA graph, on inputs that no cache still holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

DISTINCT_BYTES = 250e6  # of inputs, five times the L2 of an H200
LEAST_CALLS = 24
LANES = 128  # threads whose instructions a multiprocessor starts in a cycle


def copies(size: int) -> int:
    """How many inputs of `size` bytes are needed for each to have left the cache when its turn comes again."""
    return max(2, -int(-DISTINCT_BYTES // size))


def seconds_per_call(calls: Sequence[Callable[[], object]], repeats: int = 30, least_calls: int = LEAST_CALLS) -> float:
    """The median of `repeats` replays of one graph of all calls in turns, for one call.

    A graph has `least_calls` or more, so that its own start, some microseconds, is not counted as theirs.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compile and allocate before the capture
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    rounds = -(-least_calls // len(calls))
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


def copy_bytes_per_s() -> float:
    """Bytes read and written a second by a kernel that copies 512 MB; a graph's own copies are slower."""
    source, target = (torch.zeros(1 << 27, dtype=torch.int32, device="cuda") for _ in range(2))
    return 2 * source.nbytes / seconds_per_call([lambda: torch.bitwise_not(source, out=target)])


def instructions_per_s() -> float:
    """Instructions of single threads that all multiprocessors start a second, at the highest clock."""
    import triton

    found = triton.runtime.driver.active.utils.get_device_properties(torch.cuda.current_device())
    return float(LANES * found["multiprocessor_count"] * 1e3 * found["sm_clock_rate"])
