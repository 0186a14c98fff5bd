"""df12 weights on a GPU: decoded bit for bit, or multiplied with in place. `sdk/formats/df12.py` specifies the parts.

weights = upload(parts, shape, "cuda")
dense = decode(*weights, shape)
y = linear(x, *weights, shape[0])  # the same as with the dense weights, but for the order of float32 sums
rows = embedding(ids, *weights, shape)
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from edgekit.errors import InvalidInput
from edgekit.formats import df12
from edgekit.kernels._launch import check_shape, check_tensors, rows_asked
from edgekit.processing import Array

DTYPES = {
    "hi": torch.int32,
    "lo": torch.uint8,
    "pal": torch.uint8,
    "esc_ptr": torch.int32,
    "esc_pos": torch.int32,
    "esc_val": torch.bfloat16,
}
FUSED = 16  # rows of x: for more, decoded weights meet the stock product
SLICE_BYTES = 256 << 20  # of dense weights at a time: the memory that such a product takes


class Weights(NamedTuple):
    """The parts of one matrix on a device, unsigned words viewed as signed ones."""

    hi: torch.Tensor  # int32 [N, W]
    lo: torch.Tensor  # uint8 [N, W, 8]
    pal: torch.Tensor  # uint8 [8]
    esc_ptr: torch.Tensor  # int32 [ceil(N / 16) + 1]
    esc_pos: torch.Tensor  # int32 [E]
    esc_val: torch.Tensor  # bfloat16 [E]


def upload(parts: Mapping[str, Array], shape: tuple[int, ...], device: torch.device | str) -> Weights:
    """The parts as tensors on `device`. Raises `CorruptWeights` for parts that do not fit each other or the shape."""
    df12.check(parts, shape)
    return Weights(
        hi=torch.tensor(parts["hi"].view(np.int32), device=device),
        lo=torch.tensor(parts["lo"], device=device),
        pal=torch.tensor(parts["pal"], device=device),
        esc_ptr=torch.tensor(parts["esc_ptr"], device=device),
        esc_pos=torch.tensor(parts["esc_pos"].view(np.int32), device=device),
        esc_val=torch.tensor(parts["esc_val"].view(np.int16), device=device).view(torch.bfloat16),
    )


@torch.library.custom_op("edgekit::df12_decode", mutates_args=())
def decode(
    hi: torch.Tensor,
    lo: torch.Tensor,
    pal: torch.Tensor,
    esc_ptr: torch.Tensor,
    esc_pos: torch.Tensor,
    esc_val: torch.Tensor,
    shape: Sequence[int],
) -> torch.Tensor:
    """bf16 weights of this shape from the six tensors of `Weights`, on the current stream.

    Raises `InvalidInput` for tensors that `upload` cannot have made. What they hold is not read here.
    """
    weights = Weights(hi, lo, pal, esc_ptr, esc_pos, esc_val)
    rows, columns, _ = _check(weights, tuple(shape))
    from edgekit.kernels.df12.triton_kernel import decode as launch

    return launch(weights, 0, rows, columns).view(shape)


@decode.register_fake
def _(hi: torch.Tensor, lo: torch.Tensor, pal: torch.Tensor, esc_ptr: torch.Tensor, esc_pos: torch.Tensor,
      esc_val: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:  # fmt: skip
    return hi.new_empty(shape, dtype=torch.bfloat16)


@torch.library.custom_op("edgekit::df12_linear", mutates_args=())
def linear(
    x: torch.Tensor,
    hi: torch.Tensor,
    lo: torch.Tensor,
    pal: torch.Tensor,
    esc_ptr: torch.Tensor,
    esc_pos: torch.Tensor,
    esc_val: torch.Tensor,
    rows: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x @ w.T + bias` of bf16 `x[..., K]` and coded `w[rows, K]`: bf16 `[..., rows]`, summed in float32.

    Up to 16 rows of `x` are multiplied with the coded weights; for more, the weights are decoded for the stock product,
    256 MB of them at a time. Raises `InvalidInput` for tensors that do not fit.
    """
    weights = Weights(hi, lo, pal, esc_ptr, esc_pos, esc_val)
    columns = x.shape[-1] if x.dim() else 0
    _check(weights, (rows, columns))
    dense = {"x": x.contiguous()} | ({} if bias is None else {"bias": bias})
    check_tensors("df12", {**dense, "hi": hi}, dict.fromkeys(dense, torch.bfloat16))
    if bias is not None:
        check_shape("df12", "bias", bias, (rows,))
    lines = dense["x"].view(-1, columns)
    if len(lines) == 0:
        return x.new_empty((*x.shape[:-1], rows))
    from edgekit.kernels.df12 import triton_kernel

    if len(lines) <= FUSED:
        y = triton_kernel.linear(lines, weights, rows, bias)
        return y.reshape(*x.shape[:-1], rows)
    at_once = max(df12.BLOCK, SLICE_BYTES // (2 * columns) // df12.BLOCK * df12.BLOCK)
    slices = [
        torch.nn.functional.linear(
            lines,
            triton_kernel.decode(weights, first, min(at_once, rows - first), columns),
            None if bias is None else bias[first : first + at_once],
        )
        for first in range(0, rows, at_once)
    ]
    y = slices[0] if len(slices) == 1 else torch.cat(slices, 1)
    return y.view(*x.shape[:-1], rows)


@linear.register_fake
def _(x: torch.Tensor, hi: torch.Tensor, lo: torch.Tensor, pal: torch.Tensor, esc_ptr: torch.Tensor,
      esc_pos: torch.Tensor, esc_val: torch.Tensor, rows: int,
      bias: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], rows))


@torch.library.custom_op("edgekit::df12_embedding", mutates_args=())
def embedding(
    ids: torch.Tensor,
    hi: torch.Tensor,
    lo: torch.Tensor,
    pal: torch.Tensor,
    esc_ptr: torch.Tensor,
    esc_pos: torch.Tensor,
    esc_val: torch.Tensor,
    shape: Sequence[int],
) -> torch.Tensor:
    """The rows `ids[...]` of coded weights `[N, K]`: bf16 `[..., K]`.

    An id outside 0 to N - 1 makes a row of NaN, since an error would have to wait for the device. Raises `InvalidInput`
    for tensors that do not fit.
    """
    weights = Weights(hi, lo, pal, esc_ptr, esc_pos, esc_val)
    rows, columns, _ = _check(weights, tuple(shape))
    known, chosen = rows_asked("df12", ids, hi, rows)
    if len(chosen) == 0:
        return hi.new_empty((*ids.shape, columns), dtype=torch.bfloat16)
    from edgekit.kernels.df12.triton_kernel import decode as launch

    found = launch(weights, 0, len(chosen), columns, chosen)
    return torch.where(known, found, math.nan).view(*ids.shape, columns)


@embedding.register_fake
def _(ids: torch.Tensor, hi: torch.Tensor, lo: torch.Tensor, pal: torch.Tensor, esc_ptr: torch.Tensor,
      esc_pos: torch.Tensor, esc_val: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:  # fmt: skip
    return hi.new_empty((*ids.shape, shape[1]), dtype=torch.bfloat16)


def _check(weights: Weights, shape: tuple[int, ...]) -> tuple[int, int, int]:
    check_tensors("df12", weights._asdict(), DTYPES)
    if math.prod(shape) < 1:
        raise InvalidInput("df12: there are no weights")
    rows, columns, padded = df12.view(shape)
    check_shape("df12", "hi", weights.hi, (rows, padded // 8))
    check_shape("df12", "lo", weights.lo, (rows, padded // 8, 8))
    check_shape("df12", "pal", weights.pal, (8,))
    check_shape("df12", "esc_ptr", weights.esc_ptr, (-(-rows // df12.BLOCK) + 1,))
    check_shape("df12", "esc_val", weights.esc_val, tuple(weights.esc_pos.shape))
    return rows, columns, padded
