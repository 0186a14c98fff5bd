"""Canonical Huffman codes of limited length over 256 symbols, and bit strings in 64-bit words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.processing import Array


def code_lengths(counts: NDArray[np.int64], limit: int) -> NDArray[np.uint8]:
    """The lengths, of at most `limit` bits, whose code takes the fewest bits; 0 for symbols that do not occur.

    `counts[s]` is how often symbol `s` occurs, `len(counts) <= 2**limit`. A lone symbol has one bit. Ties go by symbol:
    the same counts give the same lengths everywhere. Source: package-merge, Larmore and Hirschberg (1990).
    """
    lengths = np.zeros(len(counts), np.uint8)
    present = np.flatnonzero(counts)
    if len(present) < 2:
        lengths[present] = 1
        return lengths
    leaves = present[np.argsort(counts[present], kind="stable")]
    leaf_weight, leaf_members = counts[leaves], np.eye(len(leaves), dtype=np.int64)
    weight, members = leaf_weight, leaf_members  # of packages, the cheapest first; members count the leaves inside
    for _ in range(limit - 1):
        even = len(weight) // 2 * 2
        weight = np.concatenate([leaf_weight, weight[:even:2] + weight[1:even:2]])
        members = np.concatenate([leaf_members, members[:even:2] + members[1:even:2]])
        order = np.argsort(weight, kind="stable")
        weight, members = weight[order], members[order]
    lengths[leaves] = members[: 2 * len(leaves) - 2].sum(axis=0)
    return lengths


def canonical_order(lengths: Array) -> NDArray[np.int64]:
    """The symbols that have a code, by (length, symbol)."""
    order = np.argsort(lengths, kind="stable")
    return order[lengths[order] > 0]


def canonical_codes(lengths: Array, limit: int) -> NDArray[np.uint32]:
    """The code of each symbol in the lowest `lengths[s]` bits: ascending in (length, symbol), as in RFC 1951."""
    order = canonical_order(lengths)
    unused = limit - lengths[order].astype(np.int64)
    span = 1 << unused  # how many words of `limit` bits begin with the code
    codes = np.zeros(len(lengths), np.uint32)
    codes[order] = (np.cumsum(span) - span) >> unused
    return codes


def is_complete(lengths: Array, limit: int) -> bool:
    """Whether every string of bits begins with exactly one code; a lone symbol of one bit passes as well."""
    used = lengths[lengths > 0].astype(np.int64)
    if (used > limit).any():
        return False
    return used.tolist() == [1] or int((1 << (limit - used)).sum()) == 1 << limit


def lookup_table(lengths: Array, limit: int) -> NDArray[np.uint16]:
    """`symbol << 4 | length` of the code that begins each word of `limit` bits, `[2**limit]`. For complete codes."""
    order = canonical_order(lengths)
    length = lengths[order].astype(np.int64)
    return np.resize(np.repeat((order << 4 | length).astype(np.uint16), 1 << (limit - length)), 1 << limit)


def put(words: NDArray[np.uint64], position: Array, code: Array, length: Array) -> None:
    """OR bit strings into words that hold bits from the most significant down.

    Strings of 1 to 64 bits, the lowest of `code`, start at the ascending bit positions and do not overlap.
    """
    position, length = position.astype(np.uint64), length.astype(np.uint64)
    word, offset = (position >> np.uint64(6)).astype(np.int64), position & np.uint64(63)
    left = code.astype(np.uint64) << (np.uint64(64) - length)
    starts = np.flatnonzero(np.diff(word, prepend=-1))
    words[word[starts]] |= np.bitwise_or.reduceat(left >> offset, starts)
    over = np.flatnonzero(offset + length > 64)  # at most one string runs over into a word
    words[word[over] + 1] |= left[over] << (np.uint64(64) - offset[over])
