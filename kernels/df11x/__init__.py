"""df11x weights to bf16 on a GPU, bit for bit. `sdk/formats/df11x.py` specifies the parts.

weights = upload(parts, shape, "cuda")
dense = decode(*weights, shape)
rows = embedding(ids, *weights, shape)
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.errors import InvalidInput
from edgekit.formats import df11x
from edgekit.formats._huffman import lookup_table
from edgekit.kernels._launch import check_shape, check_tensors, rows_asked
from edgekit.processing import Array

DTYPES = {
    "stream": torch.int32,
    "group_off": torch.int32,
    "lane_off": torch.int16,
    "sm": torch.uint8,
    "table": torch.int16,
}


class Weights(NamedTuple):
    """The parts of one tensor on a device. Unsigned words are viewed as signed ones, which torch can copy and save."""

    stream: torch.Tensor  # int32 [W + 2]
    group_off: torch.Tensor  # int32 [G + 1]
    lane_off: torch.Tensor  # int16 [G, 128]
    sm: torch.Tensor  # uint8 [P], P a multiple of 512
    table: torch.Tensor  # int16 [12 << b], `make_table` of the lengths


def upload(parts: Mapping[str, Array], shape: tuple[int, ...], device: torch.device | str) -> Weights:
    """The parts as tensors on `device`. Raises `CorruptWeights` for parts that do not fit each other or the shape."""
    df11x.check(parts, shape)
    return Weights(
        stream=torch.tensor(parts["stream"].view(np.int32), device=device),
        group_off=torch.tensor(parts["group_off"].view(np.int32), device=device),
        lane_off=torch.tensor(parts["lane_off"].view(np.int16), device=device),
        sm=torch.tensor(parts["sm"], device=device),
        table=torch.tensor(make_table(parts["lengths"]).view(np.int16), device=device),
    )


def make_table(lengths: Array) -> NDArray[np.uint16]:
    """`exponent << 7 | length` by the leading ones of the 11 bits ahead and the `b` bits after them, `[12 << b]`.

    Canonical codes of bell-shaped weights are a run of ones and few bits more, so that some hundred bytes replace 4 KB:
    32 threads that read random places of a table wait for every cache line they touch. `b` is the least that serves.
    The index comes from the bits, inverted and with a one after them, as a float: its exponent and the mantissa's top.
    """
    codes = lookup_table(lengths, df11x.LIMIT)
    entries = codes >> 4 << 7 | codes & 15
    ahead = np.arange(len(codes), dtype=np.uint32)
    as_float = ((~ahead & 0x7FF) << 21 | 1 << 20).astype(np.float32).view(np.uint32)
    for b in range(df11x.LIMIT):
        index = (as_float >> (23 - b)) - ((127 + 20) << b)
        table = np.zeros(12 << b, np.uint16)
        table[index] = entries
        if (table[index] == entries).all():
            break
    return table


@torch.library.custom_op("edgekit::df11x_decode", mutates_args=())
def decode(
    stream: torch.Tensor,
    group_off: torch.Tensor,
    lane_off: torch.Tensor,
    sm: torch.Tensor,
    table: torch.Tensor,
    shape: Sequence[int],
) -> torch.Tensor:
    """bf16 weights of this shape from the five tensors of `Weights`, on the current stream.

    Raises `InvalidInput` for tensors that `upload` cannot have made. What they hold is not read here: damaged weights
    decode to wrong ones, without a fault.
    """
    count = math.prod(shape)
    _check(Weights(stream, group_off, lane_off, sm, table), count)
    from edgekit.kernels.df11x.triton_kernel import decode as launch

    return launch(stream, group_off, lane_off, sm, table)[:count].view(shape)


@decode.register_fake
def _(stream: torch.Tensor, group_off: torch.Tensor, lane_off: torch.Tensor, sm: torch.Tensor, table: torch.Tensor,
      shape: Sequence[int]) -> torch.Tensor:  # fmt: skip
    return sm.new_empty(shape, dtype=torch.bfloat16)


@torch.library.custom_op("edgekit::df11x_embedding", mutates_args=())
def embedding(
    ids: torch.Tensor,
    stream: torch.Tensor,
    group_off: torch.Tensor,
    lane_off: torch.Tensor,
    sm: torch.Tensor,
    table: torch.Tensor,
    shape: Sequence[int],
) -> torch.Tensor:
    """The rows `ids[...]` of coded weights `[N, K]`: bf16 `[..., K]`. Only groups that hold them are decoded.

    An id outside 0 to N - 1 makes a row of NaN, since an error would have to wait for the device. Raises `InvalidInput`
    for tensors that do not fit.
    """
    rows, columns = shape
    weights = Weights(stream, group_off, lane_off, sm, table)
    _check(weights, rows * columns)
    known, chosen = rows_asked("df11x", ids, sm, rows)
    if len(chosen) == 0:
        return sm.new_empty((*ids.shape, columns), dtype=torch.bfloat16)
    from edgekit.kernels.df11x.triton_kernel import decode as launch

    groups_a_row = 1 if df11x.GROUP % columns == 0 else 1 - (1 - columns) // df11x.GROUP
    if len(chosen) * groups_a_row < len(lane_off):
        first, start = chosen * columns // df11x.GROUP, chosen * columns % df11x.GROUP
        groups = first[:, None] + torch.arange(groups_a_row, device=ids.device)
        decoded = launch(*weights, groups.view(-1).clamp(max=len(lane_off) - 1)).view(len(chosen), -1)
        place = start[:, None] + torch.arange(columns, device=ids.device)
        found = decoded.view(torch.int16).gather(1, place).view(torch.bfloat16)  # of floats it would alter NaN
    else:
        found = launch(*weights)[: rows * columns].view(rows, columns)[chosen]
    return torch.where(known, found, math.nan).view(*ids.shape, columns)


@embedding.register_fake
def _(ids: torch.Tensor, stream: torch.Tensor, group_off: torch.Tensor, lane_off: torch.Tensor, sm: torch.Tensor,
      table: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:  # fmt: skip
    return sm.new_empty((*ids.shape, shape[1]), dtype=torch.bfloat16)


def _check(weights: Weights, count: int) -> None:
    tensors = weights._asdict()
    check_tensors("df11x", tensors, DTYPES)
    if count < 1 or weights.stream.numel() < 3:
        raise InvalidInput("df11x: there are no weights to decode")
    groups = -(-count // df11x.GROUP)
    check_shape("df11x", "lane_off", weights.lane_off, (groups, df11x.LANES))
    check_shape("df11x", "group_off", weights.group_off, (groups + 1,))
    check_shape("df11x", "sm", weights.sm, (count + -count % df11x.STEP,))
    if weights.table.numel() not in [12 << b for b in range(df11x.LIMIT)]:
        raise InvalidInput(f"df11x: 'table' has {weights.table.numel()} entries, not 12 times a power of two")
