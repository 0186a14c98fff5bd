"""SOFTMAX along the last axis in fixed point: exponentials, their sum, and its reciprocal.

Numbers with `k` integer bits are an int32 in units of 2^(k - 31); a product of k and m bits has k + m of them.
Source: gemmlowp, fixedpoint.h (`exp_on_negative_values`, `one_over_one_plus_x_for_x_in_0_1`); LiteRT, softmax.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.npu.integer.fixed_point import (
    HIGHEST,
    Factor,
    factor,
    high_product,
    number,
    rescaled,
    shifted_left,
    shifted_right,
)
from edgekit.npu.integer.graph import Op
from edgekit.npu.integer.writing import Kernel
from edgekit.processing import Array

DIFFERENCE_BITS, SUM_BITS = 5, 12  # integer bits of x - max(x), and of the sum of exponentials
FRACTION = 31 - DIFFERENCE_BITS
POWERS = tuple((k, round(math.exp(-(2.0**k)) * 2**31)) for k in range(-2, DIFFERENCE_BITS))  # exp(-1/4) .. exp(-16)
EXP_OF_AN_EIGHTH, THIRD = round(math.exp(-0.125) * 2**31), round(2**31 / 3)
FORTY_EIGHT_OVER_17, THIRTY_TWO_OVER_17 = round(48 / 17 * 2**29), round(32 / 17 * 2**29)  # two integer bits


def softmax(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """Steps of 1/256 from -128 on: the kernel's result has no other grid."""
    source = op.read(0)
    by = _difference_factor(op.options.beta, source.scale)
    x = values[0].astype(np.int64)
    difference = x - x.max(-1, keepdims=True)
    counted = difference >= -_radius(int(by.shift))
    powers = exponential(rescaled(np.where(counted, difference, 0), by))
    total = np.where(counted, shifted_right(powers, SUM_BITS), 0).sum(-1, keepdims=True)
    share, bits = reciprocal(total)
    steps = shifted_right(high_product(share, powers), bits + 31 - 8) - 128
    return (np.where(counted, np.clip(steps, -128, 127), -128).astype(op.outputs[0].dtype),)


def exponential(x: Array) -> Array:
    """`exp(x)` with no integer bits, of x <= 0 with five: a polynomial below 1/4, and a factor for each bit above."""
    quarter = 1 << (FRACTION - 2)
    below = (x & (quarter - 1)) - quarter
    left = below - x
    result = _exponential_below_a_quarter(shifted_left(below, DIFFERENCE_BITS))
    for exponent, power in POWERS:
        result = np.where(left & (1 << (FRACTION + exponent)), high_product(result, number(power)), result)
    return np.where(x == 0, HIGHEST, result)


def reciprocal(total: Array) -> tuple[Array, Array]:
    """`1 / total` with no integer bits, and how many bits it was shifted; of a sum with twelve integer bits."""
    headroom = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)  # leading zeros of 32
    return _one_over_one_plus((total << headroom) - (1 << 31)), SUM_BITS - headroom


def _exponential_below_a_quarter(a: Array) -> Array:
    """`exp(a)` for -1/4 <= a < 0: four terms of the series around -1/8."""
    x = a + (1 << 28)
    square = high_product(x, x)
    cube, fourth = high_product(square, x), high_product(square, square)
    higher = shifted_right(high_product(shifted_right(fourth, 2) + cube, number(THIRD)) + square, 1)
    return EXP_OF_AN_EIGHTH + high_product(number(EXP_OF_AN_EIGHTH), x + higher)


def _one_over_one_plus(a: Array) -> Array:
    """`1 / (1 + a)` for 0 <= a < 1: three steps of Newton's method on half the denominator, two integer bits."""
    whole = a + HIGHEST
    half = (whole + np.sign(whole) + (whole == 0)) // 2
    x = FORTY_EIGHT_OVER_17 + high_product(half, number(-THIRTY_TWO_OVER_17))
    for _ in range(3):
        x = x + shifted_left(high_product(x, (1 << 29) - high_product(half, x)), 2)
    return shifted_left(x, 1)


def _difference_factor(beta: float, scale: float) -> Factor:
    """From steps of the input to differences with five integer bits."""
    return factor(min(beta * scale * (1 << FRACTION), float(HIGHEST)))


def _radius(shift: int) -> int:
    """The largest difference whose rescaled value fits in five integer bits; exponentials beyond count as zero."""
    return math.floor(((1 << DIFFERENCE_BITS) - 1) * 2.0**FRACTION / 2.0**shift)


OPS: dict[str, Kernel] = {"SOFTMAX": softmax}
