"""Reading the exponents of the DFloat11 layout: many 8-byte chunks in step, one code of each at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import CorruptWeights
from edgekit.formats._df11_luts import LONGEST
from edgekit.formats._df11_writer import BLOCK, CHUNK_BITS
from edgekit.formats._parts import chunks
from edgekit.processing import Array

LANES = 32 * BLOCK  # chunks decoded in step: their arrays stay in the cache
DIRECT = 12  # bits that find most codes in a table; longer codes are searched
STUCK = 255  # where a chunk ends that holds no code: beyond any code

Words = NDArray[np.uint64]
Entries = NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The parts that say where codes are, with their sizes checked."""

    code: Array  # u1
    gaps: NDArray[np.uint8]  # one for each chunk of whole blocks
    output_positions: Array  # u4
    blocks: int
    count: int  # weights


def exponents(stream: Stream, lengths: NDArray[np.uint8], codes: NDArray[np.uint32]) -> Iterator[NDArray[np.uint8]]:
    """The exponents of `stream.count` weights, in pieces.

    `lengths` and `codes` are by symbol, as `read_luts` gives them. Raises `CorruptWeights` when codes, gaps, positions
    and sizes do not agree; nothing outside the stream is read.
    """
    code = Code.of(lengths, codes)
    done, positions = 0, list[NDArray[np.int64]]()
    for lanes in chunks(-(-stream.code.size * 8 // CHUNK_BITS), LANES):
        gaps = stream.gaps[lanes]
        symbols, taken, end = code.decode(_words(stream.code, lanes), gaps)
        counts = taken.sum(axis=0, dtype=np.int64)
        after = done + np.cumsum(counts)
        positions.append((after - counts)[::BLOCK])
        _check_gaps(stream, lanes, after, end)
        piece = symbols.T[taken.T][: stream.count - done]
        done += piece.size
        yield piece
        if done == stream.count:
            lane = int(np.searchsorted(after, done))
            last = symbols[: done - int(after[lane] - counts[lane]), lane]
            start = (lanes.start + lane) * CHUNK_BITS + int(gaps[lane])
            _check_end(stream, start + int(lengths[last].sum(dtype=np.int64)))
            return _check_positions(stream, np.concatenate(positions))
    raise CorruptWeights(f"'encoded_exponent' ends after {done} of {stream.count} weights")


@dataclass(frozen=True)
class Code:
    """A prefix code to search: each code takes the 32-bit words from `first` to `last`, ascending."""

    first: Words
    last: Words
    entry: Entries  # `length << 8 | symbol`
    direct: Entries  # the entry by a word's first `DIRECT` bits; 0 for longer codes and where there is none

    @staticmethod
    def of(lengths: NDArray[np.uint8], codes: NDArray[np.uint32]) -> Code:
        """From lengths and codes by symbol; length 0 for symbols that have none."""
        unused = np.uint64(LONGEST) - lengths.astype(np.uint64)
        first = codes.astype(np.uint64) << unused
        last = first + (np.uint64(1) << unused) - np.uint64(1)
        entry: Entries = lengths.astype(np.uint16) << np.uint16(8) | np.arange(256, dtype=np.uint16)
        order = np.argsort(first, kind="stable")
        order = order[lengths[order] > 0]
        first, last, entry = first[order], last[order], entry[order]
        direct = _search(first, last, entry, np.arange(1 << DIRECT, dtype=np.uint64) << np.uint64(LONGEST - DIRECT))
        return Code(first, last, entry, np.where(direct >> 8 > DIRECT, 0, direct).astype(np.uint16))

    def decode(self, words: Words, gaps: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_], Words]:
        """Decode all codes that start in each chunk but the last of `words`, the first of them `gaps` bits in.

        Returns the symbols [steps, chunks], which of them are there, and where the last code of each chunk ends in bits
        from the chunk's own start: `STUCK` where bits begin no code.
        """
        high, low = words[:-1], words[1:] >> np.uint64(1)
        at = gaps.astype(np.uint64)
        symbols = np.zeros((CHUNK_BITS, at.size), np.uint8)
        taken = np.zeros(symbols.shape, np.bool_)
        for step in range(CHUNK_BITS):
            live = at < CHUNK_BITS
            if not live.any():
                break
            window = (high << at | low >> (np.uint64(CHUNK_BITS - 1) - at)) >> np.uint64(CHUNK_BITS - LONGEST)
            entry = self.direct[window >> np.uint64(LONGEST - DIRECT)]
            missed = np.flatnonzero(live & (entry == 0))
            entry[missed] = _search(self.first, self.last, self.entry, window[missed])
            length = entry >> 8
            taken[step] = live & (length > 0)
            symbols[step] = entry & 0xFF
            at += length * taken[step]
            at[missed[length[missed] == 0]] = STUCK
        return symbols, taken, at


def _search(first: Words, last: Words, entry: Entries, window: Words) -> Entries:
    """The entry of the code each word begins with, 0 if none."""
    at = np.searchsorted(first, window, "right") - 1  # -1, below the first code, takes the last, which does not hold it
    return np.where((first[at] <= window) & (window <= last[at]), entry[at], 0).astype(np.uint16)


def _words(code: Array, lanes: slice) -> Words:
    """The chunks and the one after them, zeros past the end."""
    padded = np.zeros(8 * (lanes.stop - lanes.start + 1), np.uint8)
    part = code[8 * lanes.start : 8 * lanes.stop + 8]
    padded[: part.size] = part
    return padded.view(">u8").astype(np.uint64)


def _check_gaps(stream: Stream, lanes: slice, after: NDArray[np.int64], end: Words) -> None:
    """The codes of each chunk must end where the next chunk's gap says, up to the last weight."""
    following = stream.gaps[lanes.start + 1 : lanes.stop + 1].astype(np.uint64) + np.uint64(CHUNK_BITS)
    wrong = np.flatnonzero((after < stream.count)[: following.size] & (end[: following.size] != following))
    if wrong.size == 0:
        return
    chunk = lanes.start + int(wrong[0])
    if int(end[wrong[0]]) == STUCK:
        raise CorruptWeights(f"chunk {chunk} of 'encoded_exponent' holds bits that are no code")
    if chunk < (stream.code.size - 1) // 8:  # behind the last one there is nothing to agree with
        raise CorruptWeights(f"the codes of chunk {chunk} do not end at the gap of the next one")


def _check_end(stream: Stream, bits: int) -> None:
    if (used := -(-bits // 8)) != stream.code.size:
        raise CorruptWeights(f"'encoded_exponent' has {stream.code.size} bytes, and its codes take {used}")


def _check_positions(stream: Stream, found: NDArray[np.int64]) -> None:
    """`found` is the first weight of every block that was read; the last block may hold no code."""
    expected = np.full(stream.blocks + 1, stream.count)
    expected[: found.size] = np.minimum(found, stream.count)
    short = expected[:-1] if expected[-2] == stream.count else expected
    if not any(np.array_equal(stream.output_positions, positions) for positions in (expected, short)):
        raise CorruptWeights("'output_positions' does not say with which weight each block begins")
