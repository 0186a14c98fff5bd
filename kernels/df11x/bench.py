"""df11x decode on the current CUDA device."""

from __future__ import annotations

from functools import partial

from edgekit.codec import Encoded
from edgekit.kernels._timing import copies, seconds_per_call
from edgekit.kernels.df11x import decode, upload


def decode_seconds(tensor: Encoded) -> float:
    """Seconds to decode a tensor, its parts from memory and not from a cache."""
    weights = upload(tensor.parts, tensor.shape, "cuda")
    size = sum(part.nbytes for part in weights)
    calls = [partial(decode, *(part.clone() for part in weights), tensor.shape) for _ in range(copies(size))]
    return seconds_per_call(calls)
