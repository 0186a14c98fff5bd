"""df11x decode on the current CUDA device."""

from __future__ import annotations

from functools import partial

from edgekit.codec import Bits
from edgekit.formats import df11x
from edgekit.kernels._timing import copies, seconds_per_call
from edgekit.kernels.df11x import decode, upload


def decode_seconds(bits: Bits) -> float:
    """Seconds to decode a tensor of these bf16 patterns, its parts from memory and not from a cache."""
    weights = upload(df11x.encode(bits), bits.shape, "cuda")
    size = sum(part.nbytes for part in weights)
    calls = [partial(decode, *(part.clone() for part in weights), bits.shape) for _ in range(copies(size))]
    return seconds_per_call(calls)
