"""df12: 12 bits a weight at a fixed rate, so a matrix product can read it in place.

A bf16 pattern has a high byte `h` = sign and the upper seven exponent bits, and a low byte. The seven bits are called
the pair (of two exponents). A weight matrix holds few pairs, so `h` shrinks to a nibble, sign and index into a palette
of eight; the low byte is kept as it is. The rare weight whose pair is not in the palette is an escape.

**View.** A tensor is `[N, K]`: K is the last axis, N the product of the others, 1 for a vector; K < 2**24. Rows are
padded with +0 to `Kp`, the next multiple of 128. `bw` is the largest of 128, 64, 32, 16 for which `8 * bw` divides
`Kp`; it is not stored.

**Parts**, all little-endian, in C order:

| name | dtype, shape | content |
|---|---|---|
| `pal` | u1[8] | 0, then ascending the seven most frequent other pairs; ties to the smaller |
| `hi` | u4[N, Kp/8] | a word is eight nibbles |
| `lo` | u1[N, Kp/8, 8] | the low bytes of the eight weights of a word |
| `esc_ptr` | i4[ceil(N/16) + 1] | block b of 16 rows has the escapes `esc_ptr[b]` to `esc_ptr[b + 1] - 1` |
| `esc_pos` | u4[E] | `(row % 16) * 2**24 + column`, strictly ascending inside a block |
| `esc_val` | u2[E] | the pattern of the escape |

**Words.** Word j (0 <= j < bw) of tile t, `hi[n, t*bw + j]`, holds the weights i = 0..7 of the columns `t*8*bw + i*bw +
j`: weight i of neighbouring words is a run of neighbouring columns. Its bits:

    palette index of weight i:  bits 4*i to 4*i + 2
    sign of weight i:           bit 4*PI[i] + 3,  PI = 1, 3, 5, 7, 0, 2, 4, 6

so the signs of weights 0..3 are the top bits of the word's four bytes, and those of 4..7 are so after a shift by four.

**Value.** `sign << 15 | pal[index] << 8 | lo[n, t*bw + j, i]`. Zeros and subnormals have pair 0, which is always in the
palette. An escape has index 0, sign 0 and low byte 0 in its word, that is +0: the matrix is the dense one plus the
sparse one.

**Example.** A row of K = 240: Kp = 256, so bw = 32 (8 * 32 divides 256), one tile. Column 33 is -1.5 = 0xbfc0: it is
weight i = 1 of word j = 1; h = 0xbf is sign 1, pair 0x3f. With `pal` = 0, 58, 59, 60, 61, 62, 63, 64 the index is 6:
`hi[0, 1]` has 6 << 4 and the sign at bit 4*3 + 3 = 15, together 0x8060, and `lo[0, 1, 1]` is 0xc0. Were it 2.0**40 =
0x5380 (pair 0x53), both would be 0, and `esc_ptr` = 0, 1, `esc_pos` = 0x00000021, `esc_val` = 0x5380.

**Refused** are matrices with more than 2 % escapes, which cost 48 bits each, and rows so short that padding eats the
gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.codec import Bits, NoGain, Parts
from edgekit.errors import CorruptWeights
from edgekit.formats._native_decoder import fill, library
from edgekit.formats._parts import CHUNK, check_names, check_offsets, check_part, chunks, count_weights, pattern_counts
from edgekit.processing import Array

BLOCK = 16  # rows that share an escape list
PI = (1, 3, 5, 7, 0, 2, 4, 6)  # the nibble whose top bit is the sign of weight i
ESCAPE = 16  # stands for the nibble of a weight outside the palette
MAX_ESCAPES = 0.02  # of the weights: beyond it the sparse list costs a bit a weight
MAX_PADDING = 1.2  # padded row over row; 12 bits of it are 90 % of bf16
MAX_COLUMNS = 1 << 24
NAMES = ("hi", "lo", "pal", "esc_ptr", "esc_pos", "esc_val")


def view(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows, columns and padded columns of the matrix a tensor is seen as."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), columns, -(-columns // 128) * 128


def tile_width(padded: int) -> int:
    """`bw`: words in a tile of a row of this many columns, which are a multiple of 128."""
    return next(width for width in (128, 64, 32, 16) if padded % (8 * width) == 0)


def encode(bits: Bits) -> Parts:
    """The parts of a tensor with at least one weight. Raises `NoGain` for many escapes and for short rows."""
    rows, columns, padded = view(bits.shape)
    if columns >= MAX_COLUMNS:
        raise NoGain(f"rows of {columns} weights are too long for df12")
    if padded > MAX_PADDING * columns:
        raise NoGain(f"df12 pads rows of {columns} weights to {padded}")
    counts = pattern_counts(bits).reshape(2, 128, 256).sum(axis=(0, 2))  # by pair
    palette = choose_palette(counts)
    rate = 1 - counts[palette].sum() / bits.size
    if rate > MAX_ESCAPES:
        raise NoGain(f"{rate:.1%} of the weights are outside df12's palette, more than {MAX_ESCAPES:.0%}")
    return pack(bits.reshape(rows, columns), palette)


def choose_palette(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Pair 0 and the seven others that occur most, ascending. `counts` is `[128]`."""
    often = 1 + np.argsort(-counts[1:], kind="stable")[:7]
    return np.concatenate([[0], np.sort(often)]).astype(np.uint8)


def pack(matrix: Bits, palette: NDArray[np.uint8]) -> Parts:
    """The parts of `[N, K]` patterns with a given palette, however many escapes that makes."""
    rows, columns = matrix.shape
    padded = view(matrix.shape)[2]
    hi, lo = np.empty((rows, padded // 8), np.uint32), np.empty((rows, padded // 8, 8), np.uint8)
    nibbles = _nibbles(palette)
    found: list[Array] = []  # positions of escapes in the flat matrix
    for part in chunks(rows, max(1, CHUNK // padded)):
        block = np.zeros((part.stop - part.start, padded), np.uint16)
        block[:, :columns] = matrix[part]
        nibble = np.frombuffer(bytearray((block >> 8).astype(np.uint8)).translate(nibbles), np.uint8)
        escapes = np.flatnonzero(nibble == ESCAPE)
        row, column = np.divmod(escapes, padded)
        found.append((part.start + row) * columns + column)
        nibble[escapes] = block.reshape(-1)[escapes] = 0
        hi[part], lo[part] = _pack_rows(nibble.reshape(block.shape), block.astype(np.uint8))
    row, column = np.divmod(np.concatenate(found), columns)
    edges = np.arange(0, rows + BLOCK, BLOCK)
    return {
        "hi": hi,
        "lo": lo,
        "pal": palette,
        "esc_ptr": np.searchsorted(row, edges).astype(np.int32),
        "esc_pos": (row % BLOCK << 24 | column).astype(np.uint32),
        "esc_val": matrix[row, column],
    }


def _nibbles(palette: NDArray[np.uint8]) -> bytes:
    """By high byte: sign and palette index, or `ESCAPE`."""
    table = np.full((2, 128), ESCAPE, np.uint8)
    table[:, palette] = np.arange(16).reshape(2, 8)
    return table.tobytes()


def _pack_rows(nibble: NDArray[np.uint8], low: NDArray[np.uint8]) -> tuple[Array, Array]:
    """`hi` and `lo` of whole padded rows."""
    rows, padded = low.shape
    tiles = (rows, -1, 8, tile_width(padded))
    nibble = nibble.reshape(tiles)
    hi = np.zeros_like(nibble[:, :, 0], np.uint32)
    for i in range(8):
        weight = nibble[:, :, i].astype(np.uint32)
        hi |= (weight & 7) << 4 * i | weight >> 3 << 4 * PI[i] + 3
    return hi.reshape(rows, -1), low.reshape(tiles).swapaxes(2, 3).reshape(rows, -1, 8)


def check(parts: Mapping[str, Array], shape: tuple[int, ...]) -> None:
    """Raise `CorruptWeights` unless a decoder may read these parts without a check of its own."""
    count_weights(shape)
    rows, columns, padded = view(shape)
    if columns >= MAX_COLUMNS:
        raise CorruptWeights(f"rows of {columns} weights are too long for df12")
    check_names(parts, NAMES)
    check_part(parts, "hi", "<u4", (rows, padded // 8))
    check_part(parts, "lo", "u1", (rows, padded // 8, 8))
    palette = check_part(parts, "pal", "u1", (8,))
    if palette[0] != 0 or (np.diff(palette.astype(int)) <= 0).any() or palette[-1] > 127:
        raise CorruptWeights(f"the palette {palette.tolist()} does not rise from 0 to at most 127")
    pointer = check_part(parts, "esc_ptr", "<i4", (-(-rows // BLOCK) + 1,))
    escapes = len(parts["esc_pos"]) if parts["esc_pos"].ndim else 0
    position = check_part(parts, "esc_pos", "<u4", (escapes,)).astype(np.int64)
    check_part(parts, "esc_val", "<u2", (escapes,))
    check_offsets("esc_ptr", pointer, escapes)
    row, column = _escape_places(pointer, position)
    if (position >> 24 >= BLOCK).any() or (row >= rows).any() or (column >= columns).any():
        raise CorruptWeights(f"an escape lies outside the {rows} x {columns} matrix")
    if (np.diff(row * columns + column) <= 0).any():
        raise CorruptWeights("the escapes are not in ascending order")


def decode(parts: Mapping[str, Array], shape: tuple[int, ...], threads: int = 1) -> Bits:
    """The patterns of these parts. Raises `CorruptWeights` for parts that cannot be a tensor of this shape."""
    check(parts, shape)
    out = np.empty(view(shape)[:2], np.uint16)
    if native := library():
        fill(native.decode_df12, out, [parts[name] for name in NAMES], len(out), BLOCK, threads)
    else:
        unpack(parts, out)
    return out.reshape(shape)


def unpack(parts: Mapping[str, Array], out: Bits) -> None:
    """Fill `out` `[N, K]` from parts that were checked. This defines what the native decoder does."""
    rows, columns, padded = view(out.shape)
    hi, lo, palette = parts["hi"], parts["lo"], parts["pal"].astype(np.uint16) << np.uint16(8)
    for part in chunks(rows, max(1, CHUNK // padded)):
        out[part] = _unpack_rows(hi[part], lo[part], palette)[:, :columns]
    row, column = _escape_places(parts["esc_ptr"], parts["esc_pos"].astype(np.int64))
    if out[row, column].any():
        raise CorruptWeights("the matrix is not zero under an escape")
    out[row, column] = parts["esc_val"]


def _unpack_rows(hi: Array, lo: Array, palette: NDArray[np.uint16]) -> Bits:
    rows, words = hi.shape
    width = tile_width(8 * words)
    hi = hi.reshape(rows, -1, width)
    out = np.empty((rows, words // width, 8, width), np.uint16)
    for i in range(8):
        sign = (hi >> 4 * PI[i] + 3 & 1).astype(np.uint16) << 15
        out[:, :, i] = palette[hi >> 4 * i & 7] | sign
    out |= lo.reshape(rows, -1, width, 8).swapaxes(2, 3)
    return out.reshape(rows, -1)


def _escape_places(pointer: Array, position: Array) -> tuple[Array, Array]:
    """Row and column of every escape."""
    block = np.repeat(np.arange(len(pointer) - 1), np.diff(pointer))
    return block * BLOCK + (position >> 24), position & MAX_COLUMNS - 1
