"""Fixed-point arithmetic as LiteRT's reference kernels do it: real factors are an int32 and a power of two.

Arrays are int64 that hold int32 values, so that no product overflows. Two roundings are in use, and they differ by a
step in a few values of a thousand. Most kernels round twice, as gemmlowp does: a doubling high product rounds, and the
shift behind it rounds again. Fully connected layers round once, as the library ruy does.
Which is which was found with ai-edge-litert 2.3, by comparing every value that its reference kernels write.
Source: Jacob et al. (arXiv 1712.05877), section 2.2 and appendix B; gemmlowp, fixedpoint.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgekit.processing import Array

LOWEST, HIGHEST = -(2**31), 2**31 - 1


class Factor(NamedTuple):
    """`mantissa * 2^(shift - 31)`; arrays where every channel has its own."""

    mantissa: Array
    shift: Array


def factor(real: float) -> Factor:
    """The nearest factor to a real number. Below 2^-32 it is zero."""
    fraction, shift = math.frexp(real)
    mantissa = _half_away(fraction * 2**31)
    if mantissa == 2**31:
        mantissa, shift = mantissa // 2, shift + 1
    return Factor(number(0), number(0)) if shift < -31 else Factor(number(mantissa), number(shift))


def factors(reals: Sequence[float]) -> Factor:
    """One factor a channel."""
    found = [factor(real) for real in reals]
    return Factor(np.array([each.mantissa for each in found]), np.array([each.shift for each in found]))


def number(value: int) -> Array:
    """An integer as the arrays beside it."""
    return np.array(value, np.int64)


def rescaled(values: Array, by: Factor) -> Array:
    """`values * factor`, rounded twice."""
    raised = wrapped(values << np.maximum(by.shift, 0))
    return shifted_right(high_product(raised, by.mantissa), np.maximum(-by.shift, 0))


def rescaled_once(values: Array, by: Factor) -> Array:
    """`values * factor`, rounded to nearest, halves up."""
    bits = 31 - by.shift
    product: Array = values * by.mantissa + (number(1) << (bits - 1))
    scaled: Array = product >> bits
    return scaled


def high_product(a: Array, b: Array) -> Array:
    """The upper half of `2 a b`, rounded to nearest, halves up; -1 times -1 saturates."""
    rounded: Array = (a * b + (1 << 30)) >> 31
    return np.minimum(rounded, HIGHEST)


def shifted_right(values: Array, by: Array | int) -> Array:
    """`values / 2^by`, rounded to nearest, halves away from zero."""
    mask: Array = (number(1) << by) - 1
    above = (mask >> 1) + (values < 0)
    up: Array = (values & mask) > above
    whole: Array = (values >> by) + up
    return whole


def shifted_left(values: Array, by: int) -> Array:
    """`values * 2^by`, saturated to int32."""
    raised: Array = values << by
    return raised.clip(LOWEST, HIGHEST)


def wrapped(values: Array) -> Array:
    """What int32 registers hold of these values."""
    return values.astype(np.int32).astype(np.int64)


def _half_away(value: float) -> int:
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)
