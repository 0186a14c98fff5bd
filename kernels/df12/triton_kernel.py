"""df12 in Triton: decode to bf16, and matrix products that read the coded weights in place.

Products add what is dense, where an escape counts as +0, and then the escapes of their rows from the sparse list, in
float32 and in an order that is always the same. A word's eight weights belong to columns `bw` apart, so each of them
meets a contiguous run of `x`. Where rows are few, k is split among programs, whose sums another kernel adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from edgekit.formats.df12 import BLOCK, tile_width
from edgekit.kernels.df12._decode import decode_rows
from edgekit.kernels.df12._gemm import gemm
from edgekit.kernels.df12._gemv import gemv

MULTIPROCESSORS = 132  # of an H200, which the tilings below were chosen on
MANY_ROWS = 8192  # of weights: enough programs without a split of k


class GemvTiling(NamedTuple):
    """What a program of the product with one row has at a step."""

    rows: int
    words: int
    warps: int


class GemmTiling(NamedTuple):
    """What a program of the product with more rows has; at a step each warp takes 16 words of every row."""

    rows: int
    warps: int


def gemv_tiling(rows: int, words: int) -> GemvTiling:
    """Long rows a whole one at a step; where rows are few or cannot be cut so, smaller tiles for more programs."""
    if rows >= MANY_ROWS and words % 512 == 0:
        return GemvTiling(rows=4, words=512, warps=4)
    wide = _words_at_once(words, 128)
    tall = min(BLOCK, max(4, 1024 // wide))
    return GemvTiling(rows=tall, words=wide, warps=max(1, tall * wide // 128))


def gemm_tiling(rows: int, lines: int) -> GemmTiling:
    """The fastest of 12 on an H200; sums over 16 rows of `x` take the registers of 16 rows of weights."""
    return GemmTiling(rows=32, warps=4) if rows >= MANY_ROWS and lines <= 8 else GemmTiling(rows=16, warps=2)


@triton.jit
def _sum_parts(parts, bias, y, count, rows, PARTS: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """`y[count]` from `parts[PARTS, count]`, always in the same order; the bias repeats every `rows`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    total = tl.load(parts + at, mask=live, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * count + at, mask=live, other=0.0)
    if BIAS:
        total += tl.load(bias + at % rows, mask=live, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=live)


def decode(
    weights: Sequence[torch.Tensor], first: int, rows: int, columns: int, chosen: torch.Tensor | None = None
) -> torch.Tensor:
    """bf16 `[rows, columns]`: from row `first` on, a multiple of 16, or the rows of the numbers `chosen`, int64."""
    hi, lo, pal, *escapes = weights
    out = torch.empty((rows, columns), dtype=torch.bfloat16, device=hi.device)
    words = hi.shape[1]
    wide = _words_at_once(words, 512)
    tall = min(BLOCK, 1024 // wide) if chosen is None else 1
    with torch.cuda.device_of(hi):
        decode_rows[(-(-rows // tall), words // wide)](
            hi, lo.view(torch.int64), pal.view(torch.int32), *escapes, hi if chosen is None else chosen, out,
            first, rows, columns, WORDS=words, BW=tile_width(8 * words), BN=tall, WB=wide, CHOSEN=chosen is not None,
            PADDED=columns != 8 * words, ASM=_on_nvidia(), num_warps=4,
        )  # fmt: skip
    return out


def linear(x: torch.Tensor, weights: Sequence[torch.Tensor], rows: int, bias: torch.Tensor | None) -> torch.Tensor:
    """`x @ w.T + bias`, bf16 `[M, rows]`, for at most 16 rows of `x`."""
    with torch.cuda.device_of(x):
        parts = _one_row(x, weights, rows, bias) if len(x) == 1 else _more_rows(x, weights, rows, bias)
        if len(parts) == 1:
            return parts[0]
        y = torch.empty(parts.shape[1:], dtype=torch.bfloat16, device=x.device)
        _sum_parts[(-(-y.numel() // 1024),)](
            parts, x if bias is None else bias, y, y.numel(), rows, PARTS=len(parts), BIAS=bias is not None, BLOCK=1024
        )
    return y


def _one_row(x: torch.Tensor, weights: Sequence[torch.Tensor], rows: int, bias: torch.Tensor | None) -> torch.Tensor:
    """`[parts, 1, rows]`: the product in bf16 as one part, or float32 sums without the bias."""
    hi, lo, pal, *escapes = weights
    columns, words = x.shape[1], hi.shape[1]
    tiling = gemv_tiling(rows, words)
    programs = -(-rows // tiling.rows)
    steps, parts = _split(words // tiling.words, 4 * MULTIPROCESSORS // programs)
    y = torch.empty((parts, 1, rows), dtype=torch.bfloat16 if parts == 1 else torch.float32, device=x.device)
    gemv[(programs, parts)](
        x, hi, lo.view(torch.int64), pal.view(torch.int32), *escapes, x if bias is None else bias, y, rows, columns,
        steps, WORDS=words, BW=tile_width(8 * words), BN=tiling.rows, WB=tiling.words, PADDED=columns != 8 * words,
        BIAS=bias is not None and parts == 1, ASM=_on_nvidia(), num_warps=tiling.warps,
    )  # fmt: skip
    return y


def _more_rows(x: torch.Tensor, weights: Sequence[torch.Tensor], rows: int, bias: torch.Tensor | None) -> torch.Tensor:
    """`[parts, M, rows]`, like `_one_row`."""
    hi, lo, pal, *escapes = weights
    (lines, columns), words = x.shape, hi.shape[1]
    tiling = gemm_tiling(rows, lines)
    programs = -(-rows // tiling.rows)
    steps, parts = _split(-(-words // (16 * tiling.warps)), 16 * MULTIPROCESSORS // (programs * tiling.warps))
    y = torch.empty((parts, lines, rows), dtype=torch.bfloat16 if parts == 1 else torch.float32, device=x.device)
    gemm[(programs, parts)](
        x, hi, lo.view(torch.int64), pal.view(torch.int32), *escapes, x if bias is None else bias, y, lines, rows,
        columns, steps, WORDS=words, BW=tile_width(8 * words), BN=tiling.rows, WARPS=tiling.warps,
        EIGHTS=-(-lines // 8), PADDED=columns != 8 * words or words % (16 * tiling.warps) != 0,
        BIAS=bias is not None and parts == 1, INTERPRETED=triton.knobs.runtime.interpret, ASM=_on_nvidia(),
        num_warps=tiling.warps, num_stages=1,
    )  # fmt: skip
    return y


def _split(steps: int, wanted: int) -> tuple[int, int]:
    """Steps of each part and how many parts, about as many as wanted, at least one, and none without a step."""
    each = -(-steps // min(steps, max(1, wanted)))
    return each, -(-steps // each)


def _words_at_once(words: int, most: int) -> int:
    """Words of a row that a program reads at one step: as many as go in, in whole tiles, a power of two of them."""
    width = tile_width(8 * words)
    while words % (2 * width) == 0 and width < most:
        width *= 2
    return width


def _on_nvidia() -> bool:
    return torch.version.cuda is not None and not triton.knobs.runtime.interpret
