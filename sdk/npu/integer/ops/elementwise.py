"""ADD, SUB, MUL and SQUARED_DIFFERENCE of two tensors that broadcast.

Sums bring both sides to one grid first, with spare bits below the step: 20 of them, 7 where the sum is squared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.npu.integer.fixed_point import factor, rescaled
from edgekit.npu.integer.graph import Op
from edgekit.npu.integer.writing import Kernel, centred, written
from edgekit.processing import Array

SUM_BITS, SQUARE_BITS = 20, 7


def add(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The sum."""
    one, other, whole = _aligned(op, values, SUM_BITS)
    return written(op, one + other, factor(whole / (2**SUM_BITS * op.outputs[0].scale)))


def subtract(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The difference."""
    one, other, whole = _aligned(op, values, SUM_BITS)
    return written(op, one - other, factor(whole / (2**SUM_BITS * op.outputs[0].scale)))


def squared_difference(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The difference times itself."""
    one, other, whole = _aligned(op, values, SQUARE_BITS)
    return written(op, (one - other) ** 2, factor(whole * whole / (2 ** (2 * SQUARE_BITS) * op.outputs[0].scale)))


def multiply(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The product; its factor is computed in float32, as the kernel prepares it."""
    one, other = (centred(value, tensor) for value, tensor in zip(values, op.inputs, strict=True))
    a, b = (np.float32(each.scale) for each in op.inputs if each)
    return written(op, one * other, factor(float(a * b / np.float32(op.outputs[0].scale))))


def _aligned(op: Op, values: Sequence[Array], bits: int) -> tuple[Array, Array, float]:
    """Both sides in units of twice the larger scale, with spare bits; and that unit."""
    whole = 2 * max(each.scale for each in op.inputs if each)
    one, other = (
        rescaled(centred(value, tensor) << bits, factor(tensor.scale / whole))
        for value, tensor in zip(values, op.inputs, strict=True)
        if tensor
    )
    return one, other, whole


OPS: dict[str, Kernel] = {
    "ADD": add, "MUL": multiply, "SQUARED_DIFFERENCE": squared_difference, "SUB": subtract,
}  # fmt: skip
