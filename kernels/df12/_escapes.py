"""Escapes in products: what the sparse list adds to sums over the dense weights, which are +0 where it has entries."""

from __future__ import annotations

import triton
import triton.language as tl

from edgekit.formats.df12 import BLOCK

ROWS = tl.constexpr(BLOCK)  # that share a list
COLUMN = tl.constexpr(0xFFFFFF)  # of an escape's position; its row is above


@triton.jit
def fetch(esc_pos, esc_val, escape, end):
    """Position and value of the escapes of these numbers; 0 from `end` on."""
    position = tl.load(esc_pos + escape, mask=escape < end, other=0)
    return position, tl.load(esc_val + escape, mask=escape < end, other=0.0)


@triton.jit
def _is_infinite(value):
    """Inf or NaN."""
    return (value.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000


@triton.jit
def sum_with_infinities(x, hi, lo, pal, esc_pos, esc_val, first, end, row, rows, columns, start, stop,
                        WORDS: tl.constexpr, BW: tl.constexpr):  # fmt: skip
    """The sum over the words [start, stop) as a dense matrix gives it: +0 times Inf counts where +0 is the weight.

    For the rare row that needs it; small tiles keep its registers below those of the path beside it.
    """
    low_table, high_table = tl.load(pal).to(tl.uint32, bitcast=True), tl.load(pal + 1).to(tl.uint32, bitcast=True)
    table = low_table.to(tl.uint64) | (high_table.to(tl.uint64) << 32)
    base = tl.minimum(row, rows - 1)[:, None] * WORDS
    sums = tl.zeros_like(base).to(tl.float32)
    zeros = tl.zeros_like(base).to(tl.int32)
    for word in range(start, stop):
        words = tl.load(hi + base + word).to(tl.uint32, bitcast=True)
        lows = tl.load(lo + base + word)
        for i in range(8):
            index = ((words >> (4 * i)) & 7).to(tl.uint64)
            sign = (words >> (tl.where(i < 4, 8 * i + 7, 8 * i - 29))) & 1
            high = (table >> (index * 8)) & 255
            low = (lows >> (8 * i)) & 255
            pattern = (sign.to(tl.int32) << 15) | (high.to(tl.int32) << 8) | low.to(tl.int32)
            weight = (pattern << 16).to(tl.float32, bitcast=True)
            column = (word // BW) * 8 * BW + i * BW + word % BW
            met = tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32)
            undecided = (pattern == 0) & _is_infinite(met)
            sums += tl.where(undecided, 0.0, weight * met)
            zeros += undecided.to(tl.int32)
    found, open_zeros = tl.sum(sums, 1), tl.sum(zeros, 1)
    for escape in range(first, end):
        position = tl.load(esc_pos + escape)
        column = position & COLUMN
        if (column >= start * 8) & (column < stop * 8):
            met = tl.load(x + column).to(tl.float32)
            mine = (position >> 24) == row % ROWS
            found += tl.where(mine, tl.load(esc_val + escape).to(tl.float32) * met, 0.0)
            open_zeros -= (mine & _is_infinite(met)).to(tl.int32)
    return tl.where(open_zeros > 0, float("nan"), found)


@triton.jit
def store_row(y, found, bias, line, row, rows, BIAS: tl.constexpr):
    """`y[line, row]`, with the bias."""
    if BIAS:
        found += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(y + line.to(tl.int64) * rows + row, found.to(y.dtype.element_ty), mask=row < rows)
