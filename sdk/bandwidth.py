"""How fast this machine copies memory, by the size of what is copied: caches and main memory tell themselves apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.lib.stride_tricks import as_strided

from edgekit.host import available_memory_bytes
from edgekit.types import Value

CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
SMALLEST_BYTES = 32 << 10
LEAST_LARGEST_BYTES = 256 << 20  # beyond the caches of boards and laptops; twice the largest one where that is more
MEMORY_SHARE = 8  # of the free memory, at most one part in this many is copied
ROUND_S = 0.02  # of copying, so that the clock's edges do not count
ROUNDS = 5


class CopyRate(Value, frozen=True, kw_only=True):
    """The rate of copies whose source and target are `working_set_bytes` together; reads and writes both count."""

    working_set_bytes: int
    bytes_per_s: float


class Bandwidth(Value, frozen=True, kw_only=True):
    """What copying showed, and the caches that the kernel names."""

    threads: int
    rates: tuple[CopyRate, ...]  # working sets ascending, each twice the one before
    caches: dict[str, int] = {}  # "l1d", "l2", "l3" -> bytes


def bandwidth(threads: int) -> Bandwidth:
    """Copy with `threads` threads, each in memory of its own, from caches to main memory.

    Source: McCalpin, STREAM, kernel Copy, which counts the bytes read and the bytes written.
    """
    caches = cache_sizes()
    largest = max(LEAST_LARGEST_BYTES, 2 * max(caches.values(), default=0))
    if (free := available_memory_bytes()) is not None:
        largest = min(largest, free // MEMORY_SHARE)
    sizes = [SMALLEST_BYTES * threads]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    with ThreadPoolExecutor(threads) as pool:
        rates = tuple(CopyRate(working_set_bytes=s, bytes_per_s=_copy_rate(pool, threads, s)) for s in sizes)
    return Bandwidth(threads=threads, rates=rates, caches=caches)


def cache_sizes(folder: Path = CPU_CACHES) -> dict[str, int]:
    """Data caches of the first core, near to far; empty where the kernel does not say."""
    found: dict[str, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K") and size[:-1].isdigit():
            found["l1d" if level == "1" else f"l{level}"] = int(size[:-1]) * 1024
    return found


def _copy_rate(pool: ThreadPoolExecutor, threads: int, working_set: int) -> float:
    """The best of a few rounds, as STREAM counts it; in each all threads copy at once."""
    count = working_set // threads // 2 // 8
    pairs = [(np.zeros(count), np.ones(count)) for _ in range(threads)]
    repeats = 1
    while (seconds := _round(pool, pairs, repeats)) < ROUND_S:
        repeats = max(2 * repeats, int(repeats * ROUND_S / max(seconds, 1e-6)))
    moved = 2 * 8 * count * threads * repeats
    return moved / min(seconds, *(_round(pool, pairs, repeats) for _ in range(ROUNDS - 1)))


def _round(pool: ThreadPoolExecutor, pairs: list[tuple[np.ndarray, np.ndarray]], repeats: int) -> float:
    """Seconds in which every thread copies its array `repeats` times.

    A row repeated by a stride of 0 makes one call of them, without an interpreter between small copies; numpy lets
    other threads run meanwhile.
    """
    calls = [
        (as_strided(target, (repeats, target.size), (0, 8)), as_strided(source, (repeats, source.size), (0, 8)))
        for target, source in pairs
    ]
    start = perf_counter()
    for done in [pool.submit(np.copyto, target, source) for target, source in calls]:
        done.result()
    return perf_counter() - start
