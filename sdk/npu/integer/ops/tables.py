"""Functions of one int8 number: a table of 256 steps that is made ahead, as LiteRT and Ethos-U have it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from edgekit.npu.integer.graph import Op
from edgekit.npu.integer.writing import Kernel
from edgekit.processing import Array

Function = Callable[[Array], Array]


def look_up(op: Op, values: Sequence[Array], function: Function) -> tuple[Array, ...]:
    """Each value's entry. The table is computed in float32 and rounded, halves away from zero."""
    source, out = op.read(0), op.outputs[0]
    steps = np.arange(-128, 128)
    real = (np.float32(source.scale) * (steps - source.zero).astype(np.float32)).astype(np.float32)
    scaled = function(real).astype(np.float32) * (np.float32(1) / np.float32(out.scale))
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int64) + out.zero
    table = np.clip(rounded, -128, 127).astype(np.int8)
    return (table[values[0].astype(np.int64) + 128],)


def _logistic(x: Array) -> Array:
    share: Array = np.float32(1) / (np.float32(1) + np.exp(-x))
    return share


def _gelu(x: Array, tanh: bool) -> Array:
    if tanh:
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        share = np.tanh(inner)
    else:
        share = np.array([math.erf(value * math.sqrt(0.5)) for value in x.astype(np.float64)], np.float32)
    halved: Array = np.float32(0.5) * x * (np.float32(1) + share)
    return halved


def gelu(op: Op, values: Sequence[Array]) -> tuple[Array, ...]:
    """GELU, exact or by its tanh form."""
    return look_up(op, values, partial(_gelu, tanh=bool(op.options.approximate)))


OPS: dict[str, Kernel] = {
    "GELU": gelu,
    "LOGISTIC": partial(look_up, function=_logistic),
    "TANH": partial(look_up, function=np.tanh),
}
