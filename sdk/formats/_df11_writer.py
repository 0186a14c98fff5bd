"""Writing the exponents of the DFloat11 layout: strings of bits are joined until eight exponents make one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.formats._parts import chunks

CHUNK_BITS = 64
BLOCK = 512  # chunks
JOINS = 3  # 8 exponents make a string: about 22 bits in weights as models have them, seldom above 64
PIECE = 1 << 17  # exponents handled at a time: their arrays stay in the cache
PADDING = 255  # an exponent that never has a code

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


def padded(count: int) -> Bytes:
    """Room for the exponents of `count` weights, and padding up to a whole string."""
    return np.full(-(-count >> JOINS) << JOINS, PADDING, np.uint8)


def count_exponents(exponent: Bytes, count: int) -> Ints:
    """How often each exponent occurs among the first `count`; `exponent` is `padded`."""
    pairs = np.zeros(1 << 16, np.int64)
    for piece in chunks(exponent.size, PIECE):
        pairs += np.bincount(exponent[piece].view("<u2"), minlength=1 << 16)
    square = pairs.reshape(256, 256)
    counts: Ints = square.sum(axis=0) + square.sum(axis=1)
    counts[PADDING] -= exponent.size - count
    return counts


def write_stream(
    exponent: Bytes, count: int, lengths: Bytes, codes: NDArray[np.uint32], total: int
) -> tuple[Bytes, Bytes, Ints]:
    """Code the first `count` exponents of a `padded` array, `total` bits in all.

    `lengths` and `codes` are by symbol. Returns the coded bytes, the gap of each chunk of whole blocks, and the first
    weight of each block with `count` at the end.
    """
    blocks = -(-total // (CHUNK_BITS * BLOCK))
    words = np.zeros(total // CHUNK_BITS + 1, np.uint64)
    gaps = np.zeros(blocks * BLOCK + 1, np.uint8)
    positions = np.full(blocks + 1, count, np.int64)
    positions[0] = 0
    tables = _pair_tables(lengths, codes)
    end = 0
    for piece in chunks(exponent.size, PIECE):
        code, levels = _strings(exponent[piece], *tables)
        starts = np.cumsum(np.append(end, levels[-1]))
        crossing = np.flatnonzero(np.diff(starts // CHUNK_BITS))  # one string for each chunk that begins
        entered = np.arange(crossing.size) + end // CHUNK_BITS + 1
        _put(words[end // CHUNK_BITS :], code, levels[-1], starts, crossing)
        gap, weight = _first_codes(exponent[piece], lengths, levels, crossing, entered * CHUNK_BITS - starts[crossing])
        gaps[entered] = gap
        heads = entered % BLOCK == 0
        positions[entered[heads] // BLOCK] = piece.start + weight[heads]
        end = int(starts[-1])
    return words.astype(">u8").view(np.uint8)[: -(-total // 8)].copy(), gaps[:-1], positions


def _pair_tables(lengths: Bytes, codes: NDArray[np.uint32]) -> tuple[Words, Bytes]:
    """The joined code of any two exponents and its length, by `second << 8 | first`."""
    wide = codes.astype(np.uint64)
    return (wide[None, :] << lengths[:, None] | wide[:, None]).reshape(-1), (lengths[:, None] + lengths).reshape(-1)


def _strings(exponent: Bytes, pair_code: Words, pair_length: Bytes) -> tuple[Words, list[Bytes]]:
    """The codes joined to strings of at most 64 bits; the lengths of pairs, of pairs of pairs, up to the strings."""
    pair = exponent.view("<u2").astype(np.intp)
    code, levels = pair_code.take(pair), [pair_length.take(pair)]
    while len(levels) < JOINS and (joined := levels[-1][0::2] + levels[-1][1::2]).max() <= CHUNK_BITS:
        code = code[0::2] << levels[-1][1::2] | code[1::2]
        levels.append(joined)
    return code, levels


def _put(words: Words, code: Words, length: Bytes, starts: Ints, crossing: Ints) -> None:
    """OR strings that follow one another into words; `crossing` are those that reach the next word."""
    offset = starts[:-1].view(np.uint64) & np.uint64(CHUNK_BITS - 1)
    left = code << (np.uint64(CHUNK_BITS) - length)
    heads = np.append(0, crossing + 1)  # the first string of each word
    heads = heads[: np.searchsorted(heads, code.size)]
    words[: heads.size] |= np.bitwise_or.reduceat(left >> offset, heads)
    words[1 : crossing.size + 1] |= left[crossing] << np.uint64(1) << (np.uint64(CHUNK_BITS - 1) - offset[crossing])


def _first_codes(exponent: Bytes, lengths: Bytes, levels: list[Bytes], string: Ints, ahead: Ints) -> tuple[Ints, Ints]:
    """For points `ahead` bits into strings: how many bits on the next code begins, and its number in `exponent`."""
    node = string
    for level in reversed(levels[:-1]):  # down to the pair whose codes reach the point, then to the code
        node = 2 * node
        right = level[node] < ahead
        ahead = ahead - level[node] * right
        node += right
    first, second = lengths[exponent[2 * node]], lengths[exponent[2 * node + 1]]
    right = first < ahead
    return first + second * right - ahead, 2 * node + right + 1
