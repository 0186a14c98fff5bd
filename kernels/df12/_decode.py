"""The df12 decoder, which memory bounds: on an H200 it reads and writes 3.8 TB/s where a copy does 4.2."""

from __future__ import annotations

import triton
import triton.language as tl

from edgekit.kernels.df12._escapes import COLUMN, ROWS, fetch
from edgekit.kernels.df12._words import as_bf16, unpack

AT_ONCE = tl.constexpr(32)  # escapes; a list has some 20 of them


@triton.jit
def decode_rows(hi, lo, pal, esc_ptr, esc_pos, esc_val, chosen, out, first, rows, columns, WORDS: tl.constexpr,
                BW: tl.constexpr, BN: tl.constexpr, WB: tl.constexpr, CHOSEN: tl.constexpr, PADDED: tl.constexpr,
                ASM: tl.constexpr):  # fmt: skip
    """Rows from `first` on, or with BN = 1 those whose numbers are in `chosen`."""
    if CHOSEN:
        first = tl.load(chosen + tl.program_id(0)) - tl.program_id(0)
    top = tl.program_id(0) * BN
    block = (first + top) // ROWS
    begin, end = tl.load(esc_ptr + block), tl.load(esc_ptr + block + 1)
    position, value = fetch(esc_pos, esc_val, begin + tl.arange(0, AT_ONCE), end)  # under way while weights are read
    row = top + tl.arange(0, BN)
    word = tl.program_id(1) * WB + tl.arange(0, WB)
    at = (first + tl.minimum(row, rows - 1))[:, None] * WORDS + word[None, :]
    p0, p1, p2, p3 = unpack(tl.load(hi + at), tl.load(lo + at), pal, ASM)
    column = ((word // BW) * 8 * BW + word % BW)[None, :]
    to = out + row.to(tl.int64)[:, None] * columns + column
    live = (row < rows)[:, None]
    _store_pair(to, p0, 0, column, columns, live, BW, PADDED)
    _store_pair(to, p1, 2, column, columns, live, BW, PADDED)
    _store_pair(to, p2, 4, column, columns, live, BW, PADDED)
    _store_pair(to, p3, 6, column, columns, live, BW, PADDED)
    tl.debug_barrier()  # escapes overwrite what other threads of this program have written
    lift = block * ROWS - first - top  # from a row of the block to one of the program
    left, right = tl.program_id(1) * WB * 8, (tl.program_id(1) + 1) * WB * 8
    out += top.to(tl.int64) * columns
    tall = tl.minimum(rows - top, BN)
    _store_escapes(out, position, value, begin + tl.arange(0, AT_ONCE), end, lift, tall, left, right, columns)
    for more in range(begin + AT_ONCE, end, AT_ONCE):
        later = more + tl.arange(0, AT_ONCE)
        where, what = fetch(esc_pos, esc_val, later, end)
        _store_escapes(out, where, what, later, end, lift, tall, left, right, columns)


@triton.jit
def _store_pair(to, pair, i: tl.constexpr, column, columns, live, BW: tl.constexpr, PADDED: tl.constexpr):
    even, odd = as_bf16(pair)
    tl.store(to + i * BW, even, mask=live & (column + i * BW < columns) if PADDED else live)
    tl.store(to + (i + 1) * BW, odd, mask=live & (column + (i + 1) * BW < columns) if PADDED else live)


@triton.jit
def _store_escapes(out, position, value, escape, end, lift, tall, left, right, columns):
    """Those in the first `tall` rows of `out` and in the columns [left, right)."""
    row, column = (position >> 24) + lift, position & COLUMN
    here = (escape < end) & (row >= 0) & (row < tall) & (column >= left) & (column < right)
    tl.store(out + row * columns + column, value, mask=here)
