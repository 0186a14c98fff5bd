"""CONV_2D and DEPTHWISE_CONV_2D: sums in int32, a factor for each output channel.

Images are [N, H, W, C], kernels [O, kh, kw, I] and [1, kh, kw, O].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.npu.integer.fixed_point import Factor, factors
from edgekit.npu.integer.graph import Op
from edgekit.npu.integer.writing import Kernel, written
from edgekit.processing import Array

SAME = 0  # of LiteRT's Padding


def convolution(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """Each group of output channels sees its own slice of the input's."""
    image, kernel = _padded(op, values), values[1].astype(np.int32)
    outer, height, width, inner = kernel.shape
    groups = image.shape[-1] // inner
    parts = []
    for group in range(groups):
        own = slice(group * outer // groups, (group + 1) * outer // groups)
        channels = image[..., group * inner : (group + 1) * inner]
        parts.append(
            sum(
                _tap(op, channels, row, column) @ kernel[own, row, column].T
                for row in range(height)
                for column in range(width)
            )
        )
    return _finished(op, np.concatenate(parts, -1), values)


def depthwise(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """Each output channel sees one channel of the input."""
    image, kernel = _padded(op, values), values[1].astype(np.int32)
    repeated = np.repeat(image, kernel.shape[-1] // image.shape[-1], -1)
    taps = [(row, column) for row in range(kernel.shape[1]) for column in range(kernel.shape[2])]
    return _finished(op, sum(_tap(op, repeated, *tap) * kernel[0, *tap] for tap in taps), values)


def channel_factors(op: Op) -> Factor:
    """From sums of products to the result's grid: the scales of both over the result's, in float64."""
    source, weight, out = op.read(0), op.read(1), op.outputs[0]
    return factors([source.scale * scale / out.scale for scale in weight.scales])


def _finished(op: Op, sums: Array, values: Sequence[Array]) -> tuple[Array, ...]:
    bias = values[2] if len(values) > 2 and op.inputs[2] is not None else 0
    return written(op, sums.astype(np.int64) + bias, channel_factors(op))


def _padded(op: Op, values: Sequence[Array]) -> Array:
    """The input around its zero point, in int32, with a border of zeros where the op adds one."""
    source = op.read(0)
    image = values[0].astype(np.int32) - source.zero
    borders = [(0, 0)] * 4
    for axis, (stride, dilation) in zip((1, 2), _steps(op), strict=True):
        reach = (values[1].shape[axis] - 1) * dilation + 1
        size = image.shape[axis]
        lacking = (-(-size // stride) - 1) * stride + reach - size if op.options.padding == SAME else 0
        borders[axis] = (max(lacking, 0) // 2, max(lacking, 0) - max(lacking, 0) // 2)
    return np.pad(image, borders)


def _tap(op: Op, image: Array, row: int, column: int) -> Array:
    """What one place of the kernel sees, for every output."""
    places = [slice(None)]
    for axis, at, (stride, dilation) in zip((1, 2), (row, column), _steps(op), strict=True):
        start = at * dilation
        places.append(slice(start, start + (op.outputs[0].shape[axis] - 1) * stride + 1, stride))
    return image[tuple(places)]


def _steps(op: Op) -> tuple[tuple[int, int], tuple[int, int]]:
    """(stride, dilation) along height and width."""
    given = op.options
    return (given.strideH, given.dilationHFactor), (given.strideW, given.dilationWFactor)


OPS: dict[str, Kernel] = {"CONV_2D": convolution, "DEPTHWISE_CONV_2D": depthwise}
