"""df12 decode and products on the current CUDA device, beside dense products of the same weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from edgekit.codec import Bits, Encoded
from edgekit.kernels._timing import copies, seconds_per_call
from edgekit.kernels.df12 import Weights, decode, linear, upload


def decode_seconds(matrix: Encoded) -> float:
    """Seconds to decode a matrix, its parts from memory and not from a cache."""
    return seconds_per_call([partial(decode, *weights, matrix.shape) for weights in _distinct(matrix)])


def linear_seconds(matrix: Encoded, lines: int) -> float:
    """Seconds of the product of `lines` rows with the coded matrix."""
    x = _inputs(lines, matrix.shape[1])
    return seconds_per_call([partial(linear, x, *weights, matrix.shape[0]) for weights in _distinct(matrix)])


def dense_seconds(bits: Bits, lines: int) -> float:
    """The same by the stock product of dense weights."""
    x = _inputs(lines, bits.shape[1])
    return seconds_per_call([partial(torch.nn.functional.linear, x, weight) for weight in _dense(bits)])


def dense_gemv_seconds(bits: Bits) -> float:
    """One row by our own plain kernel for dense weights, in the best of its tilings."""
    from edgekit.kernels.df12._dense_gemv import TILINGS, gemv

    x, weights = _inputs(1, bits.shape[1]), _dense(bits)
    return min(seconds_per_call([partial(gemv, x, weight, tiling) for weight in weights]) for tiling in TILINGS)


def _distinct(matrix: Encoded) -> list[Weights]:
    weights = upload(matrix.parts, matrix.shape, "cuda")
    size = sum(part.nbytes for part in weights)
    return [Weights(*(part.clone() for part in weights)) for _ in range(copies(size))]


def _dense(bits: Bits) -> list[torch.Tensor]:
    weight = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).cuda()
    return [weight.clone() for _ in range(copies(weight.nbytes))]


def _inputs(lines: int, columns: int) -> torch.Tensor:
    return torch.randn(lines, columns, dtype=torch.bfloat16, device="cuda")
