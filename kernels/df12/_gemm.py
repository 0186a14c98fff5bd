"""A few rows of x times df12 weights, on tensor cores.

A tensor core's operand is dealt out to the threads of a warp: four consecutive threads hold a row's 16 values, each two
of them side by side and two that lie eight further. Here a thread reads four neighbouring words, so that the words of
16 are put into the order (bits 1, 3, 2, 0 of their number) in which each thread already has what it needs: no weight
moves between threads. The warps of a program take 16 words each, and their sums are added at the end. 3.1 to 4.1
instructions a weight in the SASS for sm_90.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgekit.kernels.df12._escapes import COLUMN, ROWS, fetch, store_row, sum_with_infinities
from edgekit.kernels.df12._words import as_bf16, unpack

AT_ONCE = tl.constexpr(64)  # escapes; a list has some 20 of them


@triton.jit(do_not_specialize=["lines", "steps"])
def gemm(x, hi, lo, pal, esc_ptr, esc_pos, esc_val, bias, y, lines, rows, columns, steps, WORDS: tl.constexpr,
         BW: tl.constexpr, BN: tl.constexpr, WARPS: tl.constexpr, EIGHTS: tl.constexpr, PADDED: tl.constexpr,
         BIAS: tl.constexpr, INTERPRETED: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """`y[part, lines, rows]` for at most 8 * EIGHTS rows of `x`; a program has BN rows of weights, and `steps` times
    16 words for each warp. PADDED: the words of a row do not end where a step does, or not where `x` ends."""
    part = tl.program_id(1)
    stop = tl.minimum((part + 1) * steps * 16 * WARPS, WORDS)
    blocks: tl.constexpr = BN // ROWS
    lists = esc_ptr + tl.program_id(0) * blocks
    last = (rows + ROWS - 1) // ROWS - tl.program_id(0) * blocks
    first, end = tl.load(lists), tl.load(lists + tl.minimum(blocks, last))
    ends = tl.load(lists + tl.minimum(1 + tl.arange(0, blocks), last))
    escape = first + tl.arange(0, AT_ONCE)
    position, value = fetch(esc_pos, esc_val, escape, end)  # under way while weights are read
    word = tl.arange(0, 16)[None, :]
    tall = tl.arange(0, BN * WARPS)  # row / 8, warp, row % 8
    row = tl.program_id(0) * BN + tall // (8 * WARPS) * 8 + tall % 8
    group = tall // 8 % WARPS * 16  # where a warp's 16 words begin in a step
    base = tl.minimum(row, rows - 1)[:, None] * WORDS
    wide = tl.arange(0, 8 * WARPS)  # warp, line
    line = wide % 8
    sums = tl.zeros([WARPS, BN, 8], tl.float32)
    more_sums = sums
    for step in tl.range(part * steps, tl.minimum((part + 1) * steps, tl.cdiv(WORDS, 16 * WARPS)),
                         loop_unroll_factor=2):  # fmt: skip
        at = base + (step * 16 * WARPS + group)[:, None] + word
        inside = (step * 16 * WARPS + group < WORDS)[:, None] if PADDED else True
        words = tl.load(hi + at, mask=inside, other=0, eviction_policy="evict_first")
        lows = tl.load(lo + at, mask=inside, other=0, eviction_policy="evict_first")
        p0, p1, p2, p3 = unpack(words, lows, pal, ASM)
        w0, w1 = as_bf16(p0)
        w2, w3 = as_bf16(p1)
        w4, w5 = as_bf16(p2)
        w6, w7 = as_bf16(p3)
        weights = w0, w1, w2, w3, w4, w5, w6, w7
        begin = step * 16 * WARPS + wide // 8 * 16
        column = tl.multiple_of((begin // BW) * 8 * BW + begin % BW, 16)[:, None] + word
        met = x + line[:, None] * columns
        for i in tl.static_range(8):
            w = _operand(weights[i], BN, WARPS)
            sums = _add_products(sums, w, met, line, lines, column + i * BW, columns, WARPS, PADDED, INTERPRETED)
            if EIGHTS == 2:
                more_sums = _add_products(more_sums, w, met + 8 * columns, line + 8, lines, column + i * BW, columns,
                                          WARPS, PADDED, INTERPRETED)  # fmt: skip
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    line = tl.arange(0, 8)
    found, more_found = tl.sum(sums, 0), tl.sum(more_sums, 0)
    left, right = part * steps * 128 * WARPS, stop * 8
    for later in range(first, end, AT_ONCE):
        if later > first:
            escape = later + tl.arange(0, AT_ONCE)
            position, value = fetch(esc_pos, esc_val, escape, end)
        matrix, mine = _escape_matrix(escape, position, value, end, ends, left, right, BN)
        found = _add_escapes(found, matrix, mine, x, line, lines, position & COLUMN, columns, INTERPRETED)
        if EIGHTS == 2:
            more_found = _add_escapes(more_found, matrix, mine, x, line + 8, lines, position & COLUMN, columns,
                                      INTERPRETED)  # fmt: skip
    bad = tl.max(tl.max(((found != found) | (more_found != more_found)).to(tl.int32), 1), 0)
    if bad != 0:  # an infinite x met the +0 that stands for an escape
        for number in range(tl.minimum(blocks, last)):
            few = (tl.program_id(0) * blocks + number) * ROWS + tl.arange(0, ROWS)
            for m in range(lines):
                sure = sum_with_infinities(x + m * columns, hi, lo, pal, esc_pos, esc_val, tl.load(lists + number),
                                           tl.load(lists + number + 1), few, rows, columns, left // 8, stop, WORDS,
                                           BW)  # fmt: skip
                store_row(y, sure, bias, part * lines + m, few, rows, BIAS)
    else:
        _store(y, found, bias, part, line, lines, row, rows, BIAS)
        if EIGHTS == 2:
            _store(y, more_found, bias, part, line + 8, lines, row, rows, BIAS)


@triton.jit
def _operand(tile, ROWS_OF_IT: tl.constexpr, WARPS: tl.constexpr):
    """`[warp, row, word]` from `[(row / 8, warp, row % 8), word]`, the words in the order of the threads."""
    parted = tile.reshape(ROWS_OF_IT // 8, WARPS, 8, 4, 2, 2)
    return parted.permute(1, 0, 2, 4, 3, 5).reshape(WARPS, ROWS_OF_IT, 16)


@triton.jit
def _add_products(sums, w, x, line, lines, column, columns, WARPS: tl.constexpr, PADDED: tl.constexpr,
                  INTERPRETED: tl.constexpr):  # fmt: skip
    """`sums[warp, row, line]` and the products of one weight of every word with eight rows of `x`."""
    live = (line < lines)[:, None] & (column < columns) if PADDED else (line < lines)[:, None]
    met = _operand(tl.load(x + column, mask=live, other=0.0), 8, WARPS)
    return _dot(w, met.permute(0, 2, 1), sums, INTERPRETED)


@triton.jit
def _escape_matrix(escape, position, value, end, ends, left, right, BN: tl.constexpr):
    """bf16 `[row, escape]` with the value of every escape whose column lies in [left, right), and which ones do.

    `ends` is where the lists of the program's blocks of rows end.
    """
    column = position & COLUMN
    mine = (escape < end) & (column >= left) & (column < right)
    block = tl.sum((escape[:, None] >= ends[None, :]).to(tl.int32), 1)
    hit = (block * ROWS + (position >> 24))[None, :] == tl.arange(0, BN)[:, None]
    return tl.where(hit & mine[None, :], value[None, :], 0.0).to(tl.bfloat16), mine


@triton.jit
def _add_escapes(found, matrix, mine, x, line, lines, column, columns, INTERPRETED: tl.constexpr):
    """`found[row, line]` and the product of a matrix `[row, escape]` with eight rows of `x` at the escapes' columns."""
    live = mine[:, None] & (line < lines)[None, :]
    met = tl.load(x + line[None, :] * columns + column[:, None], mask=live, other=0.0)
    return _dot(matrix, met, found, INTERPRETED)


@triton.jit
def _store(y, found, bias, part, line, lines, row, rows, BIAS: tl.constexpr):
    """`y[part, line, row]` from `found[row, line]`, with the bias."""
    if BIAS:
        found += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    to = y + (part * lines + line).to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(to, found.to(y.dtype.element_ty), mask=(line < lines)[None, :] & (row < rows)[:, None])


@triton.jit
def _dot(a, b, sums, INTERPRETED: tl.constexpr):
    """`sums + a @ b` of bf16. The interpreter would multiply their patterns as integers."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(a, b, sums)
