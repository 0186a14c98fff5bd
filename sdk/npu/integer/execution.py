"""One op of a file in integers. What needs float is refused by op and module."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from edgekit.errors import InvalidInput
from edgekit.npu.integer import ops
from edgekit.npu.integer.graph import Op
from edgekit.npu.integer.writing import Kernel
from edgekit.processing import Array

INTEGERS = ("int8", "int32", "bool")  # what int8 files hold: steps, accumulators and shapes


def kernels() -> dict[str, Kernel]:
    """Op type -> its arithmetic, from every file in `ops/`."""
    modules = (import_module(f"{ops.__name__}.{found.name}") for found in iter_modules(ops.__path__))
    return {kind: kernel for module in modules for kind, kernel in module.OPS.items()}


def refusal(op: Op, known: Mapping[str, Kernel]) -> str | None:
    """Why an op is no integer op here, or None."""
    tensors = [each for each in (*op.inputs, *op.outputs) if each]
    if floats := [each for each in tensors if each.dtype.startswith(("float", "bfloat"))]:
        return f"{op.where} computes on {floats[0].dtype} ('{floats[0].name}')"
    if others := [each for each in tensors if each.dtype not in INTEGERS]:
        return f"{op.where} computes on {others[0].dtype}, which is not computed here"
    if op.kind not in known:
        return f"{op.where} has no integer arithmetic here"
    if bare := [each for each in tensors if each.dtype == "int8" and not (each.scales and min(each.scales) > 0)]:
        return f"{op.where} has int8 values without a scale ('{bare[0].name}')"
    return None


def run_op(op: Op, values: Mapping[int, Array], known: Mapping[str, Kernel]) -> tuple[Array, ...]:
    """What one op writes. Raises `InvalidInput` for an op whose tensors do not fit together."""
    try:
        read = [values[each.index] for each in op.inputs if each]
        made = known[op.kind](op, read)
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{op.where} cannot be computed from what the file says of it: {error}") from error
    if [each.shape for each in made] != [each.shape for each in op.outputs]:
        raise InvalidInput(f"{op.where} gives {made[0].shape}, and the file says {op.outputs[0].shape}")
    return made
