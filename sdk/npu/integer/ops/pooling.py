"""AVERAGE_POOL_2D, MAX_POOL_2D and MEAN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgekit.npu.integer.fixed_point import Factor, factor, number
from edgekit.npu.integer.graph import Op
from edgekit.npu.integer.ops.convolution import SAME
from edgekit.npu.integer.writing import Kernel, bounded, centred, written
from edgekit.processing import Array


def average_pool(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The mean of each window over the places that lie in the image, rounded, halves away from zero."""
    ones = np.ones((*values[0].shape[:3], 1), np.int64)
    total = sum(_windows(op, values[0].astype(np.int64), 0))
    count = sum(_windows(op, ones, 0))
    half = np.where(total > 0, count // 2, -(count // 2))
    raised = total + half
    return (bounded(op, np.sign(raised) * (np.abs(raised) // count)),)


def max_pool(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The greatest step of each window."""
    lowest = int(np.iinfo(values[0].dtype).min)
    return (bounded(op, np.max(list(_windows(op, values[0].astype(np.int64), lowest)), axis=0)),)


def mean(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The mean along some axes: the division by their size is part of the factor."""
    source = op.read(0)
    axes = tuple(int(axis) % values[0].ndim for axis in np.atleast_1d(values[1]))
    total = centred(values[0], source).sum(axes, keepdims=True)
    count = int(np.prod([values[0].shape[axis] for axis in axes]))
    return written(op, total, _divided(factor(source.scale / op.outputs[0].scale), count))


def _divided(by: Factor, count: int) -> Factor:
    """The factor over an integer, with as many bits as an int32 holds."""
    bits = min(count.bit_length() - 1, 32, 31 + int(by.shift))
    return Factor(number((int(by.mantissa) << bits) // count), by.shift - bits)


def _windows(op: Op, image: Array, border: int) -> Iterator[Array]:
    """What each place of the window sees, for every output."""
    given, out = op.options, op.outputs[0].shape
    sizes, strides = (given.filterHeight, given.filterWidth), (given.strideH, given.strideW)
    borders = [(0, 0)] * 4
    for axis, size, stride in zip((1, 2), sizes, strides, strict=True):
        lacking = max((out[axis] - 1) * stride + size - image.shape[axis], 0) if given.padding == SAME else 0
        borders[axis] = (lacking // 2, lacking - lacking // 2)
    padded = np.pad(image, borders, constant_values=border)
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            yield padded[
                :,
                row : row + (out[1] - 1) * strides[0] + 1 : strides[0],
                column : column + (out[2] - 1) * strides[1] + 1 : strides[1],
            ]


OPS: dict[str, Kernel] = {"AVERAGE_POOL_2D": average_pool, "MAX_POOL_2D": max_pool, "MEAN": mean}
