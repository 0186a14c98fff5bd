"""Decode of the DFloat11 layout on the current CUDA device, by our kernel and by the dfloat11 package's."""

from __future__ import annotations

import math
from functools import partial

from edgekit.codec import Encoded
from edgekit.kernels._timing import copies, seconds_per_call
from edgekit.kernels.df11 import _package, decode, upload


def decode_seconds(group: Encoded) -> float:
    """Seconds to decode a group of one tensor, its parts from memory and not from a cache."""
    *parts, levels = upload(group.parts, "cuda")
    size = sum(part.nbytes for part in parts)
    count = math.prod(group.shape)
    calls = [partial(decode, *(part.clone() for part in parts), levels, count) for _ in range(copies(size))]
    return seconds_per_call(calls)


def package_decode_seconds(group: Encoded) -> float | None:
    """The same by the dfloat11 package's own kernel; None where it is not installed."""
    if _package.decoder_file() is None:
        return None
    parts, shared = _package.upload(group.parts), _package.shared_bytes(group.parts)
    clones = [_package.Group(*(part.clone() for part in parts)) for _ in range(copies(sum(p.nbytes for p in parts)))]
    return seconds_per_call([partial(_package.decode, clone, shared) for clone in clones])
