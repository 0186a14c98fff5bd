"""Decode of the DFloat11 layout on the current CUDA device."""

from __future__ import annotations

from functools import partial

from edgekit.codec import Bits
from edgekit.formats import df11
from edgekit.kernels._timing import copies, seconds_per_call
from edgekit.kernels.df11 import decode, upload


def decode_seconds(bits: Bits) -> float:
    """Seconds to decode a group of one tensor of these bf16 patterns, its parts from memory and not from a cache."""
    *parts, levels = upload(df11.encode(bits), "cuda")
    size = sum(part.nbytes for part in parts)
    calls = [partial(decode, *(part.clone() for part in parts), levels, bits.size) for _ in range(copies(size))]
    return seconds_per_call(calls)
