"""RSQRT: one over the square root of each value, by five steps of Newton's method in fixed point.

Source: LiteRT, `GetInvSqrtQuantizedMultiplierExp` and the kernel of RSQRT.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import UnsupportedModel
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

SPARE_BITS = 20  # below the step, while a value is an integer
HALF_ROOT_OF_TWO = 1518500250  # sqrt(2) / 2 without integer bits
THREE_HALVES = (1 << 28) + (1 << 27)  # with three integer bits


def rsqrt(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """A table over the values that occur; zero gives the greatest step, and no value may lie below zero."""
    source, out = op.read(0), op.outputs[0]
    if int(values[0].min()) < source.zero:
        raise UnsupportedModel(f"{op.where} reads values below zero")
    by = factor(1 / float(np.sqrt(np.float32(source.scale)) * np.float32(out.scale)))
    lowered = Factor(by.mantissa, by.shift - SPARE_BITS)
    limits = np.iinfo(out.dtype)
    table = np.full(256, limits.max, np.int64)
    for value in np.unique(values[0].astype(np.int64) - source.zero):
        if value > 0:
            inverse = inverse_root(int(value))
            raised = rescaled(number(1), Factor(inverse.mantissa, inverse.shift + SPARE_BITS))
            table[value] = rescaled(raised, lowered) + out.zero
    return (np.clip(table[values[0].astype(np.int64) - source.zero], limits.min, limits.max).astype(out.dtype),)


def inverse_root(value: int) -> Factor:
    """`1 / sqrt(value)` of a positive int32."""
    if value <= 1:
        return Factor(number(HIGHEST), number(0))
    shift = 11
    while value >= 1 << 29:
        value, shift = value // 4, shift + 1
    pairs = (32 - value.bit_length() - 1) // 2 - 1
    shift, value = shift - pairs, value << (2 * pairs)
    given = number(value >> 1)
    half, x = shifted_right(given, 1), number(1 << 28)
    for _ in range(5):
        cube = shifted_left(high_product(high_product(x, x), x), 6)
        x = shifted_left(high_product(number(THREE_HALVES), x) - high_product(half, cube), 3)
    x = high_product(x, number(HALF_ROOT_OF_TWO))
    return Factor(x << max(-shift, 0), number(-max(shift, 0)))


OPS: dict[str, Kernel] = {"RSQRT": rsqrt}
