"""What every integer kernel does last: scale an accumulator to the result's grid, and keep within its bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgekit.errors import UnsupportedModel
from edgekit.npu.integer.fixed_point import Factor, rescaled, rescaled_once
from edgekit.npu.integer.graph import Op, Tensor
from edgekit.processing import Array

Kernel = Callable[[Op, Sequence[Array]], tuple[Array, ...]]  # an op and the values it reads: what it writes
BOUNDS = {
    0: (None, None),
    1: (0.0, None),
    2: (-1.0, 1.0),
    3: (0.0, 6.0),
}  # ActivationFunctionType: NONE, RELU, N1, RELU6


def written(op: Op, accumulator: Array, by: Factor, *, once: bool = False) -> tuple[Array, ...]:
    """The accumulator on the grid of the op's result, within its activation's bounds, in the result's shape."""
    scaled = rescaled_once(accumulator, by) if once else rescaled(accumulator, by)
    return (bounded(op, scaled + op.outputs[0].zero),)


def bounded(op: Op, steps: Array) -> Array:
    """Steps within the dtype and the fused activation, in the result's dtype and shape."""
    out = op.outputs[0]
    lowest, highest = bounds(out, int(getattr(op.options, "fusedActivationFunction", 0) or 0), op)
    return np.clip(steps, lowest, highest).astype(out.dtype).reshape(out.shape)


def bounds(out: Tensor, activation: int, op: Op) -> tuple[int, int]:
    """The least and greatest step. Raises `UnsupportedModel` for an activation that integers have no bounds for."""
    if activation not in BOUNDS:
        raise UnsupportedModel(f"{op.where} fuses an activation (code {activation}) that is no clamp")
    limits = np.iinfo(out.dtype)
    low, high = (None if real is None else step_of(real, out) for real in BOUNDS[activation])
    lowest = limits.min if low is None else max(limits.min, low)
    return int(lowest), int(limits.max if high is None else min(limits.max, high))


def step_of(real: float, out: Tensor) -> int:
    """The step nearest to a real number, halves away from zero."""
    steps = np.float32(real) / np.float32(out.scale)
    return out.zero + int(np.trunc(steps + np.copysign(np.float32(0.5), steps)))


def centred(value: Array, tensor: Tensor | None) -> Array:
    """Steps from zero, in int64."""
    return value.astype(np.int64) - (tensor.zero if tensor else 0)
