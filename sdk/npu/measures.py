"""What a limit of an NPU's rule can be about: the closed list, each a function of one op's shapes and arguments.

A measure that an op does not have (the stride of a softmax) is None, and a limit on it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.npu.auditing.far_numbers import FarNumber

Measure = Callable[["OpCall"], float | None]


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A tensor that an op reads or writes. A constant depends on weights only."""

    shape: tuple[int, ...]
    dtype: str  # of the trace: "float32"
    constant: bool = False


@dataclass(frozen=True, kw_only=True)
class OpCall:
    """One aten op as plain data: its arguments under the names of its schema, defaults filled in."""

    op: str
    arguments: Mapping[str, Any]  # an `Operand`, a tuple of them, or a plain value
    outputs: tuple[Operand, ...]
    taken_in: bool = False  # it alone reads a product, a sum, a difference or a pool
    on_image: bool = False  # it reads what a convolution, a pool or a resize made
    spread_on: bool = False  # all that reads it broadcasts by itself
    varies: bool = False  # a size of its tensors is not fixed
    far: FarNumber | None = None  # what it computes with stands for infinity

    @property
    def inputs(self) -> tuple[Operand, ...]:
        """The tensors that it reads, in the order of its schema."""
        values = (each if isinstance(each, tuple | list) else (each,) for each in self.arguments.values())
        return tuple(each for value in values for each in value if isinstance(each, Operand))

    @property
    def first(self) -> Operand | None:
        """What it works on: its first input that is no constant."""
        return next((each for each in self.inputs if not each.constant), None)

    def tensor(self, name: str) -> Operand | None:
        """The tensor given under a name."""
        found = self.arguments.get(name)
        return found if isinstance(found, Operand) else None


def rank(call: OpCall) -> float:
    """dimensions of its largest tensor"""
    return max(len(each.shape) for each in (*call.inputs, *call.outputs))


def batch(call: OpCall) -> float | None:
    """size of the first of two or more dimensions"""
    return call.first.shape[0] if call.first and len(call.first.shape) > 1 else None


def largest_axis(call: OpCall) -> float:
    """largest size of a dimension"""
    return max((size for each in (*call.inputs, *call.outputs) for size in each.shape), default=1)


def channels(call: OpCall) -> float | None:
    """channels of its input"""
    return call.first.shape[_channel_axis(call.first)] if call.first and call.first.shape else None


def area(call: OpCall) -> float | None:
    """elements of one channel of its image"""
    return math.prod(call.first.shape[-2:]) if call.first and len(call.first.shape) == 4 else None


def rows(call: OpCall) -> float | None:
    """vectors along the last dimension"""
    return math.prod(call.first.shape[:-1]) if call.first and call.first.shape else None


def weight_constant(call: OpCall) -> float | None:
    """1 where its second factor is constant, else 0"""
    found = next((found for name in ("weight", "other", "mat2") if (found := call.tensor(name))), None)
    return None if found is None else float(found.constant)


def kernel_height(call: OpCall) -> float | None:
    """rows of its window"""
    window = _window(call)
    return (window[-2] if len(window) > 1 else 1) if window else None


def kernel_width(call: OpCall) -> float | None:
    """columns of its window"""
    window = _window(call)
    return window[-1] if window else None


def kernel_area(call: OpCall) -> float | None:
    """elements of its window"""
    window = _window(call)
    return math.prod(window) if window else None


def stride(call: OpCall) -> float | None:
    """largest step of its window"""
    steps = _numbers(call.arguments.get("stride"))
    return max(steps or _window(call), default=None) if "stride" in call.arguments else None


def dilation(call: OpCall) -> float | None:
    """largest dilation of its window"""
    return max(_numbers(call.arguments.get("dilation")), default=None)


def padding(call: OpCall) -> float | None:
    """largest border added on one side"""
    return max(_numbers(call.arguments.get("padding")), default=None)


def groups(call: OpCall) -> float | None:
    """groups of channels"""
    found = call.arguments.get("groups")
    return found if isinstance(found, int) else None


def group_channels(call: OpCall) -> float | None:
    """channels in one group, 1 for a depthwise convolution"""
    count, found = groups(call), channels(call)
    return found / count if count and found else None


def inner(call: OpCall) -> float | None:
    """size of the dimension that its product sums over"""
    return call.first.shape[-1] if _is_product(call) and call.first and call.first.shape else None


def outer(call: OpCall) -> float | None:
    """last dimension of its product"""
    return call.outputs[0].shape[-1] if _is_product(call) and call.outputs and call.outputs[0].shape else None


def axis_from_end(call: OpCall) -> float | None:
    """how far from the last dimension it works, 0 for the last itself"""
    axes = _axes(call)
    return len(call.first.shape) - 1 - min(axes) if axes and call.first else None


def reduced(call: OpCall) -> float | None:
    """elements that one result is made of"""
    axes = _axes(call)
    return math.prod(call.first.shape[axis] for axis in axes) if axes and call.first else None


def last_kept(call: OpCall) -> float | None:
    """1 where the last dimension is not reduced, else 0"""
    axes = _axes(call)
    return float(len(call.first.shape) - 1 not in axes) if axes and call.first else None


def channels_kept(call: OpCall) -> float | None:
    """1 where the channels of an image are not reduced, else 0"""
    axes = _axes(call)
    return float(1 not in axes) if axes and call.first and len(call.first.shape) == 4 else None


def dims_kept(call: OpCall) -> float | None:
    """1 where what is reduced stays as dimensions of 1, else 0"""
    found = call.arguments.get("keepdim")
    return None if found is None else float(found)


def flattest(call: OpCall) -> float | None:
    """smallest of its last three dimensions"""
    return min((1, 1, *call.first.shape)[-3:]) if call.first else None


def leading(call: OpCall) -> float | None:
    """elements before its last three dimensions"""
    return math.prod(call.first.shape[:-3]) if call.first else None


def image(call: OpCall) -> float:
    """1 where it reads what a convolution, a pool or a resize made, else 0"""
    return float(call.on_image)


def taken_in(call: OpCall) -> float:
    """1 where it alone reads a product, a sum, a difference or a pool, else 0"""
    return float(call.taken_in)


def low(call: OpCall) -> float | None:
    """lower end of a clamp"""
    return _number(call, "min", "min_val")


def high(call: OpCall) -> float | None:
    """upper end of a clamp"""
    return _number(call, "max", "max_val")


def step(call: OpCall) -> float | None:
    """elements from one that a slice takes to the next"""
    return _number(call, "step")


def exponent(call: OpCall) -> float | None:
    """exponent of a power"""
    return _number(call, "exponent")


def bounded(call: OpCall) -> float | None:
    """1 where a clamp has an upper end, else 0"""
    return float(call.arguments.get("max") is not None) if call.op == "clamp" else None


def casts_kind(call: OpCall) -> float | None:
    """1 where it casts between real numbers, whole numbers and truth values, else 0"""
    cast = _cast(call)
    return float(cast[0] != cast[1]) if cast else None


def casts_real(call: OpCall) -> float | None:
    """1 where it casts real numbers to others or others to real ones, else 0"""
    cast = _cast(call)
    return float(cast[0] != cast[1] and "float" in cast) if cast else None


def truth_mask(call: OpCall) -> float | None:
    """1 where its mask is of truth values, else 0"""
    found = call.tensor("attn_mask")
    return float(found is not None and found.dtype == "bool") if "attn_mask" in call.arguments else None


def mixes_kinds(call: OpCall) -> float:
    """1 where it reads both whole and real numbers, else 0"""
    return float(len({"float" in each.dtype for each in call.inputs}) > 1)


def spread_on(call: OpCall) -> float:
    """1 where all that reads it repeats it by itself, else 0"""
    return float(call.spread_on)


def bulk(call: OpCall) -> float | None:
    """elements without its two smallest dimensions above 1"""
    return math.prod(sorted(size for size in call.first.shape if size > 1)[2:]) if call.first else None


def result_area(call: OpCall) -> float | None:
    """elements of one channel of the image it makes"""
    return math.prod(call.outputs[0].shape[2:]) if call.outputs and len(call.outputs[0].shape) == 4 else None


def evenly(call: OpCall) -> float | None:
    """1 where the size of its result divides its input's, else 0"""
    if call.first is None or {len(call.first.shape), len(call.outputs[0].shape)} != {4}:
        return None
    return float(all(was % now == 0 for was, now in zip(call.first.shape[2:], call.outputs[0].shape[2:], strict=True)))


def scale(call: OpCall) -> float | None:
    """largest factor by which it enlarges an image"""
    if not call.op.startswith(("upsample", "_upsample", "interpolate")) or call.first is None:
        return None
    return max(out / size for out, size in zip(call.outputs[0].shape[2:], call.first.shape[2:], strict=True))


def align_corners(call: OpCall) -> float | None:
    """1 where corners of both images are aligned, else 0"""
    found = call.arguments.get("align_corners")
    return None if found is None else float(found)


def counts_padding(call: OpCall) -> float | None:
    """1 where an average counts its border, else 0"""
    found = call.arguments.get("count_include_pad")
    return None if found is None or not padding(call) else float(found)


MEASURES: dict[str, Measure] = {
    each.__name__: each
    for each in (rank, batch, largest_axis, channels, area, rows, weight_constant, kernel_height, kernel_width,
                 kernel_area, stride, dilation, padding, groups, group_channels, inner, outer, axis_from_end,
                 reduced, last_kept, channels_kept, dims_kept, flattest, leading, image, taken_in, low, high,
                 bounded, step, exponent, casts_kind, casts_real, truth_mask, mixes_kinds, spread_on, bulk,
                 result_area, evenly, scale, align_corners, counts_padding)
}  # fmt: skip


def _cast(call: OpCall) -> tuple[str, str] | None:
    """Kinds before and after a cast: "float", "int" or "bool"."""
    if call.op not in ("to", "_to_copy") or call.first is None:
        return None
    before, after = ("float" if "float" in each.dtype else "bool" if each.dtype == "bool" else "int"
                     for each in (call.first, call.outputs[0]))  # fmt: skip
    return before, after


def _window(call: OpCall) -> tuple[int, ...]:
    weight = call.tensor("weight")
    if "kernel_size" in call.arguments:
        window = _numbers(call.arguments["kernel_size"])
        spatial = len(call.first.shape) - 2 if call.first else 1
        return window * spatial if len(window) == 1 else window
    return weight.shape[2:] if weight and "conv" in call.op else ()


def _number(call: OpCall, *names: str) -> float | None:
    """The first of the arguments that is a number."""
    return next((found for name in names if isinstance(found := call.arguments.get(name), int | float)), None)


def _numbers(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(each for each in values if isinstance(each, int) and not isinstance(each, bool))


def _channel_axis(operand: Operand) -> int:
    return 1 if len(operand.shape) in (4, 5) else -1


def _is_product(call: OpCall) -> bool:
    return call.op in ("linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "__matmul__")


def _axes(call: OpCall) -> tuple[int, ...]:
    """The dimensions an op works along, counted from the first."""
    if call.first is None or not call.first.shape:
        return ()
    count = len(call.first.shape)
    if "normalized_shape" in call.arguments:
        return tuple(range(count - len(call.arguments["normalized_shape"]), count))
    if "dim" not in call.arguments:
        return ()
    return tuple(sorted(axis % count for axis in _numbers(call.arguments["dim"]))) or tuple(range(count))


def order(call: OpCall) -> tuple[int, ...]:
    """Where each dimension of the result was before."""
    if call.first is None:
        return ()
    count = len(call.first.shape)
    if call.op == "permute":
        return tuple(axis % count for axis in _numbers(call.arguments.get("dims")))
    if call.op in ("transpose", "t", "mT", "swapaxes") and count > 1:
        one, other = (_numbers(call.arguments.get(name)) for name in ("dim0", "dim1"))
        swapped = (one[0] % count, other[0] % count) if one and other else (count - 2, count - 1)
        order = list(range(count))
        order[swapped[0]], order[swapped[1]] = swapped[1], swapped[0]
        return tuple(order)
    return ()
