"""FULLY_CONNECTED and BATCH_MATMUL: sums in int32, one factor, or one for each row of the weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.npu.integer.fixed_point import factor
from edgekit.npu.integer.graph import Op, Tensor
from edgekit.npu.integer.ops.convolution import channel_factors
from edgekit.npu.integer.writing import Kernel, centred, written
from edgekit.processing import Array


def fully_connected(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """[..., I] times [O, I] transposed, plus a bias. Rounded once."""
    weight = centred(values[1], None)
    rows = centred(values[0], op.inputs[0]).reshape(-1, weight.shape[1])
    bias = values[2] if len(values) > 2 and op.inputs[2] is not None else 0
    return written(op, rows @ weight.T + bias, channel_factors(op), once=True)


def batch_matmul(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """[..., M, K] times [..., K, N]; the options may turn either."""
    left, right = (centred(value, tensor) for value, tensor in zip(values, op.inputs, strict=True))
    left = left.swapaxes(-1, -2) if op.options.adjX else left
    right = right.swapaxes(-1, -2) if op.options.adjY else right
    return written(op, left @ right, factor(_float32_product(op.inputs) / op.outputs[0].scale))


def _float32_product(tensors: Sequence[Tensor | None]) -> float:
    """Both scales multiplied in float32, as the kernel prepares them."""
    return float(np.prod([np.float32(each.scale) for each in tensors if each]))


OPS: dict[str, Kernel] = {"BATCH_MATMUL": batch_matmul, "FULLY_CONNECTED": fully_connected}
