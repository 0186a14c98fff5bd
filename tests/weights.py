"""bf16 weights for the tests of the lossless codecs, as bit patterns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint16]
SPREAD = 0.25  # standard deviation of the logarithm of a row's or column's scale: 2.67 bits of exponent


def layer(rows: int, columns: int, seed: int = 0, distribution: str = "normal") -> Bits:
    """What a trained linear layer holds: bells whose width differs by row and by column."""
    rng = np.random.default_rng(seed)
    size = (rows, columns)
    values = {"normal": rng.normal(size=size), "student": rng.standard_t(5, size), "laplace": rng.laplace(size=size)}
    scale = np.exp(rng.normal(0, SPREAD, (rows, 1))) * np.exp(rng.normal(0, SPREAD, (1, columns)))
    return bf16(0.02 * scale * values[distribution])


def layer_with_every_pattern() -> Bits:
    """A layer large enough that all 65,536 patterns, strewn over it, are rare."""
    weights = layer(2048, 2048)
    rng = np.random.default_rng(1)
    weights.reshape(-1)[rng.choice(weights.size, 1 << 16, replace=False)] = np.arange(1 << 16)
    return weights


def bf16(values: NDArray[np.float64]) -> Bits:
    """Finite floats, rounded to the nearest bf16, as patterns."""
    wide = values.astype(np.float32).view(np.uint32)
    return ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)


def exponent_entropy(bits: Bits) -> float:
    """Bits of information in an exponent."""
    counts = np.bincount(bits.reshape(-1) >> 7 & 0xFF)
    share = counts[counts > 0] / bits.size
    return float(-(share * np.log2(share)).sum())
