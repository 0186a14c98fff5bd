"""df12 in Triton: decode to bf16, and matrix products that read the coded weights in place.

Products add what is dense, where an escape counts as +0, and then the escapes of their rows from the sparse list, in
float32 and in an order that is always the same. A word's eight weights belong to columns `bw` apart, so each of them
meets a contiguous run of `x`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from edgekit.formats.df12 import BLOCK, tile_width
from edgekit.kernels.df12._words import as_bf16, as_float, unpack

ROWS = tl.constexpr(BLOCK)  # that share an escape list
COLUMN = tl.constexpr(0xFFFFFF)  # of an escape's position; its row is above
AT_ONCE = tl.constexpr(128)  # escapes; a list has some 20 of them
PROGRAMS = 4 * 132  # fewer leave multiprocessors of an H200 idle, and k is split
MANY_ROWS = 8192  # enough for programs of four rows that read 512 words at a step; else they read 128


@triton.jit
def _decode(hi, lo, pal, esc_ptr, esc_pos, esc_val, chosen, out, first, rows, columns, WORDS: tl.constexpr,
            BW: tl.constexpr, BN: tl.constexpr, WB: tl.constexpr, CHOSEN: tl.constexpr, PADDED: tl.constexpr,
            ASM: tl.constexpr):  # fmt: skip
    """Rows from `first` on, or with BN = 1 those whose numbers are in `chosen`."""
    if CHOSEN:
        first = tl.load(chosen + tl.program_id(0)) - tl.program_id(0)
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    word = tl.program_id(1) * WB + tl.arange(0, WB)
    stored = first + tl.minimum(row, rows - 1)
    at = stored[:, None] * WORDS + word[None, :]
    words = tl.load(hi + at, eviction_policy="evict_first")
    lows = tl.load(lo + at, eviction_policy="evict_first")
    p0, p1, p2, p3 = unpack(words, lows, pal, ASM)
    column = ((word // BW) * 8 * BW + word % BW)[None, :]
    to = out + row.to(tl.int64)[:, None] * columns + column
    live = (row < rows)[:, None]
    _store_pair(to, p0, 0, column, columns, live, BW, PADDED)
    _store_pair(to, p1, 2, column, columns, live, BW, PADDED)
    _store_pair(to, p2, 4, column, columns, live, BW, PADDED)
    _store_pair(to, p3, 6, column, columns, live, BW, PADDED)
    tl.debug_barrier()  # escapes overwrite what other threads of this program have written
    block = (first + tl.program_id(0) * BN) // ROWS
    left, right = tl.program_id(1) * WB * 8, (tl.program_id(1) + 1) * WB * 8
    end = tl.load(esc_ptr + block + 1)
    for at_escape in range(tl.load(esc_ptr + block), end, AT_ONCE):
        escape = at_escape + tl.arange(0, AT_ONCE)
        position = tl.load(esc_pos + escape, mask=escape < end, other=0)
        mine = block * ROWS + (position >> 24) - first - tl.program_id(0) * BN
        column_of = position & COLUMN
        here = (escape < end) & (mine >= 0) & (mine < BN) & (column_of >= left) & (column_of < right)
        here &= tl.program_id(0) * BN + mine < rows
        value = tl.load(esc_val + escape, mask=here)
        tl.store(out + (tl.program_id(0) * BN + mine).to(tl.int64) * columns + column_of, value, mask=here)


@triton.jit
def _store_pair(to, pair, i: tl.constexpr, column, columns, live, BW: tl.constexpr, PADDED: tl.constexpr):
    even, odd = as_bf16(pair)
    if PADDED:
        tl.store(to + i * BW, even, mask=live & (column + i * BW < columns), cache_modifier=".cs")
        tl.store(to + (i + 1) * BW, odd, mask=live & (column + (i + 1) * BW < columns), cache_modifier=".cs")
    else:
        tl.store(to + i * BW, even, mask=live, cache_modifier=".cs")
        tl.store(to + (i + 1) * BW, odd, mask=live, cache_modifier=".cs")


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
def _add_products(sums, weights, x, column, columns, BW: tl.constexpr, PADDED: tl.constexpr):
    """`sums[BN, WB]` and the products of eight weights a word with one row of `x`."""
    xs = _slices(x, column, columns, BW, PADDED)
    for i in tl.static_range(8):
        sums = tl.fma(weights[i], xs[i], sums)
    return sums


@triton.jit
def _weights(hi, lo, pal, at, ASM: tl.constexpr):
    words = tl.load(hi + at, eviction_policy="evict_first")
    lows = tl.load(lo + at, eviction_policy="evict_first")
    p0, p1, p2, p3 = unpack(words, lows, pal, ASM)
    w0, w1 = as_float(p0)
    w2, w3 = as_float(p1)
    w4, w5 = as_float(p2)
    w6, w7 = as_float(p3)
    return w0, w1, w2, w3, w4, w5, w6, w7


@triton.jit
def _gemv(x, hi, lo, pal, esc_ptr, esc_pos, esc_val, bias, y, rows, columns, steps, M: tl.constexpr,
          WORDS: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, WB: tl.constexpr, PADDED: tl.constexpr,
          UNROLL: tl.constexpr, BIAS: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """`y[part, m, rows]` for M = 1, 2 or 4 rows of `x`; a program has BN rows of weights and `steps` tiles of k."""
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.program_id(1)
    start, stop = part * steps, tl.minimum((part + 1) * steps, WORDS // WB)
    word = tl.arange(0, WB)
    block = tl.program_id(0) * BN // ROWS
    first, end = tl.load(esc_ptr + block), tl.load(esc_ptr + block + 1)
    escape = first + tl.arange(0, AT_ONCE)  # the first ones are under way while weights are read
    position = tl.load(esc_pos + escape, mask=escape < end, other=0)
    value = tl.load(esc_val + escape, mask=escape < end, other=0.0).to(tl.float32)
    base = tl.minimum(row, rows - 1)[:, None] * WORDS + word[None, :]
    y0 = tl.zeros([BN, WB], tl.float32)
    y1, y2, y3 = y0, y0, y0
    for step in tl.range(start, stop, loop_unroll_factor=UNROLL):
        w = _weights(hi, lo, pal, base + step * WB, ASM)
        at = step * WB + word
        column = ((at // BW) * 8 * BW + at % BW)[None, :]
        y0 = _add_products(y0, w, x, column, columns, BW, PADDED)
        if M > 1:
            y1 = _add_products(y1, w, x + columns, column, columns, BW, PADDED)
        if M > 2:
            y2 = _add_products(y2, w, x + 2 * columns, column, columns, BW, PADDED)
            y3 = _add_products(y3, w, x + 3 * columns, column, columns, BW, PADDED)
    for m in tl.static_range(M):
        sums = y0 if m == 0 else y1 if m == 1 else y2 if m == 2 else y3
        line = x + m * columns
        found = tl.sum(sums, 1)
        found = _add_escapes(found, line, escape, position, value, end, row, start * 8 * WB, stop * 8 * WB)
        for more in range(first + AT_ONCE, end, AT_ONCE):
            later = more + tl.arange(0, AT_ONCE)
            where = tl.load(esc_pos + later, mask=later < end, other=0)
            what = tl.load(esc_val + later, mask=later < end, other=0.0).to(tl.float32)
            found = _add_escapes(found, line, later, where, what, end, row, start * 8 * WB, stop * 8 * WB)
        if tl.max((found != found).to(tl.int32), 0) != 0:  # an infinite x met the +0 that stands for an escape
            found = _with_infinities(line, hi, lo, pal, esc_pos, esc_val, first, end, row, rows, columns,
                                     start * WB, stop * WB, WORDS, BW)  # fmt: skip
        _store_row(y, found, bias, part * M + m, row, rows, BIAS)


@triton.jit
def _gemm(x, hi, lo, pal, esc_ptr, esc_pos, esc_val, bias, y, lines, rows, columns, steps, WORDS: tl.constexpr,
          BW: tl.constexpr, BN: tl.constexpr, PADDED: tl.constexpr, BIAS: tl.constexpr, INTERPRETED: tl.constexpr,
          ASM: tl.constexpr):  # fmt: skip
    """`y[part, lines, rows]` for at most 16 rows of `x`, on tensor cores; a program has BN rows of weights."""
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.program_id(1)
    start, stop = part * steps, tl.minimum((part + 1) * steps, WORDS // BW)
    word = tl.arange(0, BW)
    line = tl.arange(0, 16)
    base = tl.minimum(row, rows - 1)[:, None] * WORDS + word[None, :]
    sums = tl.zeros([16, BN], tl.float32)
    for step in range(start, stop):
        words = tl.load(hi + base + step * BW, eviction_policy="evict_first")
        lows = tl.load(lo + base + step * BW, eviction_policy="evict_first")
        p0, p1, p2, p3 = unpack(words, lows, pal, ASM)
        column = step * 8 * BW + word
        sums = _dot_pair(sums, p0, x, line, lines, column, columns, BW, PADDED, INTERPRETED)
        sums = _dot_pair(sums, p1, x, line, lines, column + 2 * BW, columns, BW, PADDED, INTERPRETED)
        sums = _dot_pair(sums, p2, x, line, lines, column + 4 * BW, columns, BW, PADDED, INTERPRETED)
        sums = _dot_pair(sums, p3, x, line, lines, column + 6 * BW, columns, BW, PADDED, INTERPRETED)
    for b in tl.static_range(BN // ROWS):
        block = tl.program_id(0) * (BN // ROWS) + b
        inside = block * ROWS < rows
        end = tl.load(esc_ptr + block + 1, mask=inside, other=0)
        for at_escape in range(tl.load(esc_ptr + block, mask=inside, other=0), end, 32):
            escape = at_escape + tl.arange(0, 32)
            position = tl.load(esc_pos + escape, mask=escape < end, other=0)
            at = position & COLUMN
            mine = (escape < end) & (at >= start * 8 * BW) & (at < stop * 8 * BW)
            value = tl.load(esc_val + escape, mask=mine, other=0.0)
            hit = (block * ROWS + (position >> 24))[:, None] == row[None, :]
            matrix = tl.where(hit & mine[:, None], value[:, None], 0.0).to(tl.bfloat16)
            met = tl.load(x + line[:, None] * columns + at[None, :],
                          mask=mine[None, :] & (line < lines)[:, None], other=0.0)  # fmt: skip
            sums = _dot(met, matrix, sums, INTERPRETED)
    if tl.max(tl.max((sums != sums).to(tl.int32), 1), 0) != 0:
        for number in range(BN // ROWS):
            block = tl.program_id(0) * (BN // ROWS) + number
            if block * ROWS < rows:
                few = block * ROWS + tl.arange(0, ROWS)
                first, end = tl.load(esc_ptr + block), tl.load(esc_ptr + block + 1)
                for m in range(lines):
                    found = _with_infinities(x + m * columns, hi, lo, pal, esc_pos, esc_val, first, end, few, rows,
                                             columns, start * BW, stop * BW, WORDS, BW)  # fmt: skip
                    _store_row(y, found, bias, part * lines + m, few, rows, BIAS)
    else:
        if BIAS:
            sums += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
        to = y + (part * lines + line).to(tl.int64)[:, None] * rows + row[None, :]
        tl.store(to, sums.to(y.dtype.element_ty), mask=(line < lines)[:, None] & (row < rows)[None, :])


@triton.jit
def _dot_pair(sums, pair, x, line, lines, column, columns, BW: tl.constexpr, PADDED: tl.constexpr,
              INTERPRETED: tl.constexpr):  # fmt: skip
    """`sums[16, BN]` and the products of two weights of every word with rows of `x`."""
    even, odd = as_bf16(pair)
    live = (line < lines)[:, None]
    at = x + line[:, None] * columns + column[None, :]
    first = live & (column < columns)[None, :] if PADDED else live
    second = live & (column + BW < columns)[None, :] if PADDED else live
    sums = _dot(tl.load(at, mask=first, other=0.0), tl.trans(even), sums, INTERPRETED)
    return _dot(tl.load(at + BW, mask=second, other=0.0), tl.trans(odd), sums, INTERPRETED)


@triton.jit
def _dot(a, b, sums, INTERPRETED: tl.constexpr):
    """`sums + a @ b` of bf16. The interpreter would multiply their patterns as integers."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(a, b, sums)


@triton.jit
def _store_row(y, found, bias, line, row, rows, BIAS: tl.constexpr):
    if BIAS:
        found += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(y + line.to(tl.int64) * rows + row, found.to(y.dtype.element_ty), mask=row < rows)


@triton.jit
def _add_escapes(found, x, escape, position, value, end, row, left, right):
    """`found[BN]` and the products of up to `AT_ONCE` escapes whose columns lie in [left, right)."""
    column = position & COLUMN
    mine = (escape < end) & (column >= left) & (column < right)
    products = value * tl.load(x + column, mask=mine, other=0.0).to(tl.float32)
    hit = ((position >> 24)[None, :] == (row % ROWS)[:, None]) & mine[None, :]
    return found + tl.sum(tl.where(hit, products[None, :], 0.0), 1)


@triton.jit
def _is_infinite(value):
    """Inf or NaN."""
    return (value.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000


@triton.jit
def _with_infinities(x, hi, lo, pal, esc_pos, esc_val, first, end, row, rows, columns, start, stop,
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
    hi, lo, *others = weights
    out = torch.empty((rows, columns), dtype=torch.bfloat16, device=hi.device)
    words = hi.shape[1]
    width = _words_at_once(words, 512)
    tall = min(BLOCK, 1024 // width) if chosen is None else 1
    with torch.cuda.device_of(hi):
        _decode[(-(-rows // tall), words // width)](
            hi, lo.view(torch.int64), others[0].view(torch.int32), *others[1:], hi if chosen is None else chosen, out,
            first, rows, columns, WORDS=words, BW=tile_width(8 * words), BN=tall, WB=width, CHOSEN=chosen is not None,
            PADDED=columns != 8 * words, ASM=_on_nvidia(), num_warps=4,
        )  # fmt: skip
    return out


def linear(x: torch.Tensor, weights: Sequence[torch.Tensor], rows: int, bias: torch.Tensor | None) -> torch.Tensor:
    """`x @ w.T + bias`, bf16 `[M, rows]`, for at most 16 rows of `x`."""
    hi, lo, pal, *escapes = weights
    lines, columns = x.shape
    words = hi.shape[1]
    bw = tile_width(8 * words)
    few = lines <= 4
    width = _words_at_once(words, 512 if rows >= MANY_ROWS and words % 512 == 0 else 128) if few else bw
    tall = min(BLOCK, max(4, 1024 // width)) if few else 64
    programs, tiles = -(-rows // tall), words // width
    steps = -(-tiles // min(tiles, max(1, PROGRAMS // programs)))
    parts = -(-tiles // steps)
    padded_lines = 1 << (lines - 1).bit_length() if few else lines
    if padded_lines != lines:
        x = torch.nn.functional.pad(x, (0, 0, 0, padded_lines - lines))
    kind = torch.bfloat16 if parts == 1 else torch.float32
    y = torch.empty((parts, padded_lines, rows), dtype=kind, device=x.device)
    given = (x, hi, lo.view(torch.int64), pal.view(torch.int32), *escapes, hi if bias is None else bias, y)
    adds = bias is not None
    shared = {"WORDS": words, "BW": bw, "BN": tall, "PADDED": columns != 8 * words, "ASM": _on_nvidia()}
    with torch.cuda.device_of(x):
        if few:
            _gemv[(programs, parts)](*given, rows, columns, steps, M=padded_lines, WB=width,
                                     UNROLL=2 if lines == 1 else 1, BIAS=adds and parts == 1, **shared,
                                     num_warps=4 if width == 512 else max(1, tall * width // 128))  # fmt: skip
        else:
            _gemm[(programs, parts)](*given, lines, rows, columns, steps, BIAS=adds and parts == 1,
                                     INTERPRETED=triton.knobs.runtime.interpret, **shared,
                                     num_warps=8, num_stages=1)  # fmt: skip
        if parts > 1:
            total = torch.empty((padded_lines, rows), dtype=torch.bfloat16, device=x.device)
            _sum_parts[(-(-total.numel() // 1024),)](
                y, given[-2], total, total.numel(), rows, PARTS=parts, BIAS=adds, BLOCK=1024
            )
            return total[:lines]
    return y[0, :lines]


def _words_at_once(words: int, most: int) -> int:
    """Words of a row that a program reads at one step: as many as go in, in whole tiles, a power of two of them."""
    width = tile_width(8 * words)
    while words % (2 * width) == 0 and width < most:
        width *= 2
    return width


def _on_nvidia() -> bool:
    return torch.version.cuda is not None and not triton.knobs.runtime.interpret
