"""One row of x times df12 weights, in fused multiply-adds: 3.8 instructions a weight in the SASS for sm_90."""

from __future__ import annotations

import triton
import triton.language as tl

from edgekit.kernels.df12._escapes import COLUMN, ROWS, fetch, store_row, sum_with_infinities
from edgekit.kernels.df12._words import as_float, unpack

AT_ONCE = tl.constexpr(128)  # escapes; a list has some 20 of them


@triton.jit
def gemv(x, hi, lo, pal, esc_ptr, esc_pos, esc_val, bias, y, rows, columns, steps, WORDS: tl.constexpr,
         BW: tl.constexpr, BN: tl.constexpr, WB: tl.constexpr, PADDED: tl.constexpr, BIAS: tl.constexpr,
         ASM: tl.constexpr):  # fmt: skip
    """`y[part, rows]`; a program has BN rows of weights and `steps` tiles of WB words in each."""
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.program_id(1)
    start, stop = part * steps, tl.minimum((part + 1) * steps, WORDS // WB)
    word = tl.arange(0, WB)
    block = tl.program_id(0) * BN // ROWS
    first, end = tl.load(esc_ptr + block), tl.load(esc_ptr + block + 1)
    escape = first + tl.arange(0, AT_ONCE)
    position, value = fetch(esc_pos, esc_val, escape, end)  # under way while weights are read
    base = tl.minimum(row, rows - 1)[:, None] * WORDS + word[None, :]
    sums = tl.zeros([BN, WB], tl.float32)
    for step in tl.range(start, stop, loop_unroll_factor=2):
        at = base + step * WB  # one index: pointers of both parts would take twice the registers
        words = tl.load(hi + at, eviction_policy="evict_first")
        lows = tl.load(lo + at, eviction_policy="evict_first")
        p0, p1, p2, p3 = unpack(words, lows, pal, ASM)
        w0, w1 = as_float(p0)
        w2, w3 = as_float(p1)
        w4, w5 = as_float(p2)
        w6, w7 = as_float(p3)
        place = step * WB + word
        column = ((place // BW) * 8 * BW + place % BW)[None, :]
        xs = _slices(x, column, columns, BW, PADDED)
        weights = w0, w1, w2, w3, w4, w5, w6, w7
        for i in tl.static_range(8):
            sums = tl.fma(weights[i], xs[i], sums)
    found = tl.sum(sums, 1)
    found = _add_escapes(found, x, escape, position, value, end, row, start * 8 * WB, stop * 8 * WB)
    for more in range(first + AT_ONCE, end, AT_ONCE):
        later = more + tl.arange(0, AT_ONCE)
        where, what = fetch(esc_pos, esc_val, later, end)
        found = _add_escapes(found, x, later, where, what, end, row, start * 8 * WB, stop * 8 * WB)
    if tl.max((found != found).to(tl.int32), 0) != 0:  # an infinite x met the +0 that stands for an escape
        found = sum_with_infinities(x, hi, lo, pal, esc_pos, esc_val, first, end, row, rows, columns,
                                    start * WB, stop * WB, WORDS, BW)  # fmt: skip
    store_row(y, found, bias, part, row, rows, BIAS)


@triton.jit
def _slices(x, column, columns, BW: tl.constexpr, PADDED: tl.constexpr):
    """The eight runs of a row of `x` that a word's weights meet, as float32 `[1, WB]`."""
    if PADDED:
        x0 = tl.load(x + column, mask=column < columns, other=0.0)
        x1 = tl.load(x + column + BW, mask=column + BW < columns, other=0.0)
        x2 = tl.load(x + column + 2 * BW, mask=column + 2 * BW < columns, other=0.0)
        x3 = tl.load(x + column + 3 * BW, mask=column + 3 * BW < columns, other=0.0)
        x4 = tl.load(x + column + 4 * BW, mask=column + 4 * BW < columns, other=0.0)
        x5 = tl.load(x + column + 5 * BW, mask=column + 5 * BW < columns, other=0.0)
        x6 = tl.load(x + column + 6 * BW, mask=column + 6 * BW < columns, other=0.0)
        x7 = tl.load(x + column + 7 * BW, mask=column + 7 * BW < columns, other=0.0)
    else:
        x0, x1 = tl.load(x + column), tl.load(x + column + BW)
        x2, x3 = tl.load(x + column + 2 * BW), tl.load(x + column + 3 * BW)
        x4, x5 = tl.load(x + column + 4 * BW), tl.load(x + column + 5 * BW)
        x6, x7 = tl.load(x + column + 6 * BW), tl.load(x + column + 7 * BW)
    return (x0.to(tl.float32), x1.to(tl.float32), x2.to(tl.float32), x3.to(tl.float32),
            x4.to(tl.float32), x5.to(tl.float32), x6.to(tl.float32), x7.to(tl.float32))  # fmt: skip


@triton.jit
def _add_escapes(found, x, escape, position, value, end, row, left, right):
    """`found[BN]` and the products of up to `AT_ONCE` escapes whose columns lie in [left, right)."""
    column = position & COLUMN
    mine = (escape < end) & (column >= left) & (column < right)
    products = value.to(tl.float32) * tl.load(x + column, mask=mine, other=0.0).to(tl.float32)
    hit = ((position >> 24)[None, :] == (row % ROWS)[:, None]) & mine[None, :]
    return found + tl.sum(tl.where(hit, products[None, :], 0.0), 1)
