"""Groups of weights in the DFloat11 layout to bf16 on a GPU, bit for bit. `sdk/formats/df11.py` specifies the parts.

weights = upload(parts, "cuda")
dense = decode(*weights, count)  # the group's tensors end to end
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.errors import CorruptWeights, InvalidInput
from edgekit.formats._df11_luts import read_luts
from edgekit.formats._parts import check_part
from edgekit.formats.df11 import stream_of
from edgekit.kernels._launch import check_shape, check_tensors
from edgekit.processing import Array

LANES = 128
BLOCK = 64 * LANES  # weights
NESTED = 1 << 15  # above all entries of codes
DTYPES = {
    "stream": torch.int32,
    "block_start": torch.int64,
    "lane_start": torch.int32,
    "sm": torch.uint8,
    "table": torch.int32,
}


class Weights(NamedTuple):
    """A group on a device: its stream and bytes, and where each lane's 64 weights begin, half a bit a weight."""

    stream: torch.Tensor  # int32 [W]: the stream's bytes as words, the first byte on top, and two words of zeros
    block_start: torch.Tensor  # int64 [blocks]: the bit where a block of 8192 weights begins
    lane_start: torch.Tensor  # int32 [blocks, 128]: bits from there to each lane's first code
    sm: torch.Tensor  # uint8 [8192 * blocks]: a block's are in the order (step of 8 weights, lane, weight)
    table: torch.Tensor  # int32 [...], `make_table`'s
    levels: int  # how many tables a code may lead through


def upload(parts: Mapping[str, Array], device: torch.device | str) -> Weights:
    """The parts of a group as tensors on `device`, where a kernel finds the lanes. Raises `CorruptWeights`."""
    lengths, codes = read_luts(parts["luts"])
    used = lengths[lengths > 0].tolist()
    count = check_part(parts, "sign_mantissa", "u1", (parts["sign_mantissa"].size,)).size
    if not used or not count:
        raise CorruptWeights(f"{count} weights with {len(used)} different exponents cannot be decoded")
    coded = stream_of(parts, count)
    words = np.zeros(-(-coded.code.size // 4) + 2, ">u4")
    words.view(np.uint8)[: coded.code.size] = coded.code
    sm = np.zeros(count + -count % BLOCK, np.uint8)
    sm[:count] = parts["sign_mantissa"]
    stream = torch.tensor(words.astype("<u4").view(np.int32), device=device)
    table = torch.tensor(make_table(lengths, codes).view(np.int32), device=device)
    check_tensors("df11", {"stream": stream}, {})
    from edgekit.kernels.df11.triton_kernel import find_starts

    levels = 1 + (max(used) > 8) + (max(used) > 20)
    starts = find_starts(
        stream,
        torch.tensor(coded.gaps, device=device),
        torch.tensor(coded.output_positions[:-1][: coded.blocks].astype(np.int64), device=device),
        table,
        count=count,
        trips=-(-64 // min(used)),
        levels=levels,
    )
    return Weights(
        stream=stream,
        block_start=starts[:, 0].contiguous(),
        lane_start=(starts - starts[:, :1]).to(torch.int32),
        sm=torch.tensor(sm.reshape(-1, LANES, 8, 8).swapaxes(1, 2).reshape(-1), device=device),
        table=table,
        levels=levels,
    )


def make_table(lengths: Array, codes: Array) -> NDArray[np.uint32]:
    """`exponent << 7 | length` by the first 8 bits of a code, or `1 << 15` and where the table of its next bits begins.

    The package's tables take 8 bits each; 12 for the rare long codes save every weight one look-up.
    """
    places, tables = {(0, 0): 0}, np.zeros(256, np.uint32)
    for symbol in np.flatnonzero(lengths):
        length, code = int(lengths[symbol]), int(codes[symbol])
        at = 0
        for depth, width in ((0, 8), (8, 12), (20, 12)):
            rest = depth + width - length
            if rest >= 0:
                first = at + ((code << rest) & ((1 << width) - 1))
                tables[first : first + (1 << rest)] = int(symbol) << 7 | length
                break
            prefix = depth + width, code >> -rest
            entry = at + (prefix[1] & ((1 << width) - 1))
            if prefix not in places:
                places[prefix] = len(tables)
                tables = np.append(tables, np.zeros(4096, np.uint32))
            at = places[prefix]
            tables[entry] = NESTED + at
    return tables


@torch.library.custom_op("edgekit::df11_decode", mutates_args=())
def decode(
    stream: torch.Tensor,
    block_start: torch.Tensor,
    lane_start: torch.Tensor,
    sm: torch.Tensor,
    table: torch.Tensor,
    levels: int,
    count: int,
) -> torch.Tensor:
    """The `count` bf16 weights of a group, flat, from the fields of `Weights`, on the current stream.

    Raises `InvalidInput` for tensors that `upload` cannot have made. What they hold is not read here: a damaged stream
    or damaged starts decode to wrong weights, without a fault; `table` is trusted.
    """
    _check(Weights(stream, block_start, lane_start, sm, table, levels), count)
    from edgekit.kernels.df11.triton_kernel import decode as launch

    return launch(stream, block_start, lane_start, sm, table, levels)[:count]


@decode.register_fake
def _(stream: torch.Tensor, block_start: torch.Tensor, lane_start: torch.Tensor, sm: torch.Tensor, table: torch.Tensor,
      levels: int, count: int) -> torch.Tensor:  # fmt: skip
    return sm.new_empty((count,), dtype=torch.bfloat16)


def _check(weights: Weights, count: int) -> None:
    tensors = weights._asdict()
    del tensors["levels"]
    check_tensors("df11", tensors, DTYPES)
    if count < 1 or weights.stream.numel() < 3:
        raise InvalidInput("df11: there are no weights to decode")
    blocks = -(-count // BLOCK)
    check_shape("df11", "block_start", weights.block_start, (blocks,))
    check_shape("df11", "lane_start", weights.lane_start, (blocks, LANES))
    check_shape("df11", "sm", weights.sm, (blocks * BLOCK,))
    if not 1 <= weights.levels <= 3:
        raise InvalidInput(f"df11: a code leads through 1 to 3 tables, not {weights.levels}")
