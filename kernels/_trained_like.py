"""Random bf16 weights, as bit patterns, that look like a trained layer's: for tests and benches."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.codec import Bits

Distribution = Literal["normal", "student", "laplace"]

WIDTH = 0.02  # of the bells, standard deviation
SPREAD = 0.25  # standard deviation of the logarithm of a row's or column's scale: 2.67 bits of exponent


def layer(rows: int, columns: int, seed: int = 0, distribution: Distribution = "normal") -> Bits:
    """bf16 patterns `[rows, columns]`: bells whose width differs by row and by column."""
    rng = np.random.default_rng(seed)
    size = (rows, columns)
    match distribution:
        case "normal":
            values = rng.standard_normal(size)
        case "student":
            values = rng.standard_t(5, size)
        case "laplace":
            values = rng.laplace(size=size)
    scale = np.exp(rng.normal(0, SPREAD, (rows, 1))) * np.exp(rng.normal(0, SPREAD, (1, columns)))
    return bf16(WIDTH * scale * values)


def bf16(values: NDArray[np.float64]) -> Bits:
    """Finite floats, rounded to the nearest bf16, as patterns."""
    wide = values.astype(np.float32).view(np.uint32)
    return ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)
