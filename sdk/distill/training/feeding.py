"""Batches that threads load while the device computes, in the order that was asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from edgekit.host import cores

T = TypeVar("T")


def loaded_ahead(batches: Iterable[Sequence[int]], load: Callable[[Sequence[int]], T], workers: int = 0) -> Iterator[T]:
    """`load` of every batch, in order, by `workers` threads, 0 for one on each core; each has one batch in hand.

    Decoding and resizing release the GIL. What `load` raises is raised when its batch is due. Leaving the loop early
    waits for batches in hand only.
    """
    remaining, workers = iter(batches), workers or cores()
    with ThreadPoolExecutor(workers, thread_name_prefix="edgekit load") as pool:
        pending: deque[Future[T]] = deque(pool.submit(load, batch) for batch in islice(remaining, workers + 1))
        try:
            while pending:
                ready = pending.popleft().result()
                pending.extend(pool.submit(load, batch) for batch in islice(remaining, 1))
                yield ready
        finally:
            for future in pending:
                future.cancel()
