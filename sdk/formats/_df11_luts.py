"""The lookup tables of the DFloat11 layout: from a prefix code to tables, and back to the code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import CorruptWeights
from edgekit.processing import Array

SYMBOLS = 240  # what an entry can name; larger entries are pointers
LONGEST = 32  # bits of a code: four tables deep
MOST_LUTS = 256 - SYMBOLS + 1  # the root needs no pointer


def lut_prefixes(lengths: Array, codes: Array) -> list[tuple[int, int]]:
    """`(depth, the 8 * depth bits that lead there)` of every table the code needs, the root first."""
    present = [(int(lengths[symbol]), int(codes[symbol])) for symbol in np.flatnonzero(lengths)]
    return sorted({(d, code >> (length - 8 * d)) for length, code in present for d in range((length + 7) // 8)})


def write_luts(lengths: Array, codes: Array) -> NDArray[np.uint8]:
    """Tables and the row of lengths, u1[k + 1, 256], of a code that needs at most `MOST_LUTS` tables.

    `lengths` and `codes` have a value for each of 256 symbols, length 0 for those without a code.
    """
    number = {prefix: index for index, prefix in enumerate(lut_prefixes(lengths, codes))}
    luts = np.full((len(number), 256), -1)
    for (depth, bits), index in number.items():
        if index > 0:
            luts[number[depth - 1, bits >> 8], bits & 0xFF] = 256 - index
    for symbol in np.flatnonzero(lengths):
        length, code = int(lengths[symbol]), int(codes[symbol])
        depth = (length - 1) // 8
        width = 1 << (8 * depth + 8 - length)  # entries that begin with the code
        entry = code * width & 0xFF
        luts[number[depth, code >> (length - 8 * depth)], entry : entry + width] = symbol
    flat = luts.reshape(-1)
    filled = np.maximum.accumulate(np.where(flat >= 0, np.arange(flat.size), 0))
    return np.concatenate([flat[filled].reshape(luts.shape), lengths[None]]).astype(np.uint8)


def read_luts(luts: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """`(lengths, codes)` of 256 symbols, length 0 for those without a code. Raises `CorruptWeights`.

    Tables are walked in order, for each is pointed to by one before it. The first entry that can be a symbol's or a
    table's is the true one. The rest stand where the package's end-of-file code was: copies of the entry before them.
    """
    if luts.dtype != np.uint8 or luts.ndim != 2 or luts.shape[1] != 256 or not 2 <= len(luts) <= MOST_LUTS + 1:
        raise CorruptWeights(f"'luts' is {luts.dtype}{list(luts.shape)}, not uint8[2 to {MOST_LUTS + 1}, 256]")
    lengths, entries = luts[-1].astype(np.uint8), luts[:-1].reshape(-1).tolist()
    if lengths.max() > LONGEST:
        raise CorruptWeights(f"a code is {lengths.max()} bits long, more than {LONGEST}")
    codes = np.zeros(256, np.uint32)
    found: set[int] = set()
    prefixes = {0: (0, 0)}  # table -> its depth, the bits that lead to it
    at = 0
    while at < len(entries):
        table, entry, value = at // 256, at % 256, entries[at]
        if table not in prefixes:
            raise CorruptWeights(f"no pointer leads to table {table} of 'luts'")
        depth, bits = prefixes[table]
        target, length, step = 256 - value, int(lengths[value]), 1
        if value >= SYMBOLS and target not in prefixes and target < len(luts) - 1 and depth < 3:
            prefixes[target] = (depth + 1, bits << 8 | entry)
        elif value < SYMBOLS and value not in found and 8 * depth < length <= 8 * depth + 8:
            step = 1 << (8 * depth + 8 - length)
            if entry % step or entries[at : at + step] != [value] * step:
                raise CorruptWeights(f"{_place(at)}: exponent {value} is no code of {length} bits")
            codes[value] = (bits << 8 | entry) // step
            found.add(value)
        elif at == 0 or value != entries[at - 1]:
            raise CorruptWeights(f"{_place(at)}: {_explain(value, target, length, len(luts) - 1)}")
        at += step
    if lost := sorted(set(np.flatnonzero(lengths).tolist()) - found):
        raise CorruptWeights(f"'luts' gives exponent {lost[0]} a length of {lengths[lost[0]]} bits and no code")
    return lengths, codes


def _place(at: int) -> str:
    return f"'luts' table {at // 256}, entry {at % 256}"


def _explain(value: int, target: int, length: int, tables: int) -> str:
    """Why an entry can be neither a code nor the copy of one."""
    if value < SYMBOLS:
        return f"exponent {value}, whose code has {length} bits, cannot stand here"
    if target >= tables:
        return f"points to table {target}, and there are {tables}"
    return f"points to table {target}, which is led to already or lies too deep"
