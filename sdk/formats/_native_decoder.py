"""The decoders of `_native.c` on one or several threads. What they return is defined by the formats, in NumPy.

They are compiled when edgekit is installed, and left out where no C compiler is found: then NumPy itself decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.processing import Array


@cache
def library() -> ModuleType | None:
    """The compiled module, None where it was not built or cannot be loaded."""
    try:
        return import_module("edgekit.formats._native")
    except ImportError:
        return None


def fill(
    decode: Callable[..., None], out: NDArray[np.uint16], parts: Sequence[Array], count: int, unit: int, threads: int
) -> None:
    """Fill `out` from parts in the order of `_native.c`; `threads` share its `count` groups or rows, `unit` at a time.

    Raises `CorruptWeights` for parts that do not fit `out` or each other.
    """
    if threads < 1:
        raise InvalidInput(f"{threads} threads cannot decode: ask for 1 or more")
    buffers = [np.ascontiguousarray(part) for part in parts]
    units = -(-count // unit)
    shares = min(threads, units)
    edges = [min(units * share // shares * unit, count) for share in range(shares + 1)]

    def decode_range(first: int, last: int) -> None:
        decode(out, out.shape[-1], first, last, *buffers)

    try:
        if shares == 1:
            decode_range(0, count)
            return
        with ThreadPoolExecutor(shares) as pool:
            list(pool.map(decode_range, edges[:-1], edges[1:]))  # the first error is raised here
    except ValueError as error:
        raise CorruptWeights(str(error)) from error
