"""What the codecs of this folder share: the shape and the arrays they were given, checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.codec import Bits
from edgekit.errors import CorruptWeights
from edgekit.processing import Array

CHUNK = 1 << 18  # weights handled at a time: temporaries stay in cache, and small beside the tensor

MAX_AXES = 32  # of a NumPy array


def check_names(parts: Mapping[str, Array], names: Collection[str]) -> None:
    """Raise `CorruptWeights` unless there are exactly these parts."""
    if set(parts) != set(names):
        raise CorruptWeights(f"the parts are {', '.join(sorted(parts)) or 'none'}, not {', '.join(sorted(names))}")


def check_part(parts: Mapping[str, Array], name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """The part of this name; raises `CorruptWeights` unless it has this dtype and shape."""
    part = parts[name]
    if part.dtype != np.dtype(dtype) or part.shape != shape:
        raise CorruptWeights(f"'{name}' is {part.dtype}{list(part.shape)}, not {np.dtype(dtype)}{list(shape)}")
    return part


def check_offsets(name: str, offsets: Array, end: int) -> None:
    """Raise `CorruptWeights` unless a vector starts at 0, never falls and ends at `end`."""
    wide = offsets.astype(np.int64)
    if wide[0] != 0 or wide[-1] != end or (np.diff(wide) < 0).any():
        raise CorruptWeights(f"'{name}' does not rise from 0 to {end}, where its data ends")


def count_weights(shape: tuple[int, ...]) -> int:
    """How many weights a shape has; raises `CorruptWeights` when it has none or more axes than any tensor."""
    if len(shape) > MAX_AXES or any(size < 1 for size in shape):
        raise CorruptWeights(f"the shape {list(shape[:MAX_AXES])} is not one of coded weights")
    return math.prod(shape)


def pattern_counts(bits: Bits) -> NDArray[np.int64]:
    """How often each of the 65,536 patterns occurs."""
    flat = bits.reshape(-1)
    counts = np.zeros(1 << 16, np.int64)
    for start in chunks(flat.size, CHUNK):
        counts += np.bincount(flat[start], minlength=1 << 16)
    return counts


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `count`; the last may be shorter."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
