"""QUANTIZE from one grid to another, MAXIMUM, and RELU where no op took it over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.npu.integer.fixed_point import factor, rescaled
from edgekit.npu.integer.graph import Op
from edgekit.npu.integer.writing import Kernel, bounds, centred, written
from edgekit.processing import Array

RELU = 1  # of ActivationFunctionType


def requantize(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The same numbers on another grid."""
    source = op.read(0)
    return written(op, centred(values[0], source), factor(source.scale / op.outputs[0].scale))


def relu(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The same numbers on another grid, and none below zero."""
    source, out = op.read(0), op.outputs[0]
    by = factor(float(np.float32(source.scale) / np.float32(out.scale)))
    lowest, highest = bounds(out, RELU, op)
    return (np.clip(rescaled(centred(values[0], source), by) + out.zero, lowest, highest).astype(out.dtype),)


def maximum(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The larger of two tensors on one grid."""
    return (np.maximum(values[0], values[1]),)


OPS: dict[str, Kernel] = {
    "MAXIMUM": maximum,
    "QUANTIZE": requantize,
    "RELU": relu,
}
