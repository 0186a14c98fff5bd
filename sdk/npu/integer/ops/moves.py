"""Ops that only move values: the grid of what is read is that of what is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import UnsupportedModel
from edgekit.npu.integer.graph import Op
from edgekit.npu.integer.writing import Kernel
from edgekit.processing import Array


def reshape(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """The same values in another shape."""
    return (values[0].reshape(op.outputs[0].shape),)


def transpose(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """Axes in another order."""
    return (values[0].transpose(values[1].tolist()),)


def pad(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """A border of zero points."""
    return (np.pad(values[0], values[1].tolist(), constant_values=op.outputs[0].zero),)


def concatenate(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """Joined along an axis. All parts must lie on the result's grid."""
    out = op.outputs[0]
    for part in op.inputs:
        if part and (part.scales, part.zero_points) != (out.scales, out.zero_points):
            raise UnsupportedModel(f"{op.where} joins '{part.name}', which lies on another grid than the result")
    return (np.concatenate(values, op.options.axis),)


def slice_(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """From `begin` on, `size` elements of each axis; -1 is all that are left."""
    begin, size = values[1].tolist(), values[2].tolist()
    return (values[0][tuple(slice(b, None if s < 0 else b + s) for b, s in zip(begin, size, strict=True))],)


def strided_slice(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """Python's slices, with masks that say which ends count."""
    given = op.options
    if given.ellipsisMask or given.newAxisMask:
        raise UnsupportedModel(f"{op.where} has an ellipsis or a new axis, which is not computed here")
    begin, end, steps = (value.tolist() for value in values[1:4])
    places: list[slice | int] = []
    for axis, step in enumerate(steps):
        bit = 1 << axis
        if given.shrinkAxisMask & bit:
            places.append(begin[axis])
            continue
        places.append(slice(None if given.beginMask & bit else begin[axis],
                            None if given.endMask & bit else end[axis], step))  # fmt: skip
    return (values[0][tuple(places)].reshape(op.outputs[0].shape),)


def broadcast_to(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """Repeated along axes of size one."""
    return (np.broadcast_to(values[0], op.outputs[0].shape),)


OPS: dict[str, Kernel] = {
    "BROADCAST_TO": broadcast_to, "CONCATENATION": concatenate, "PAD": pad, "RESHAPE": reshape,
    "SLICE": slice_, "STRIDED_SLICE": strided_slice, "TRANSPOSE": transpose,
}  # fmt: skip
