"""The DFloat11 0.5 layout: one Huffman code over the exponents of a group of tensors, decodable 8 bytes at a time.

A group is what a model decodes at once, such as a transformer block: its tensors are flattened and laid end to end, n
weights in all. The parts, as files made by the `dfloat11` package hold them under the group's module path:

- `sign_mantissa` u1[n]: `(w >> 8) & 0x80 | w & 0x7f` of each pattern.
- `encoded_exponent` u1[B]: the codes of all exponents `(w >> 7) & 0xff`, one after the other from the most significant
  bit of each byte on; what is left of the last byte may hold anything. It is read in chunks of 8 bytes and in blocks
  of 512 chunks; the last ones may be short.
- `luts` u1[k + 1, 256]: k tables, the first for the first 8 bits of a code, and the length of every symbol's code, 0
  for none and 32 at most. An entry below 240 is a symbol; others lead to table `256 - entry` for the next 8 bits.
  Entries that no code reaches repeat the entry before them. The tables alone say which code a symbol has: the package's
  codes are not canonical, ours are. Exponents from 240 on (infinities, NaN, 2^113 and above) cannot be held.
- `gaps` u1[320 * blocks]: 5 bits for each chunk, most significant first: the bits before the first code that starts in
  it. 0 for chunks past the end.
- `output_positions` u1[4 * (blocks + 1)], little-endian u4: the number of the first weight whose code starts in each
  block, and n. The package leaves a last block out in which no code starts.
- `split_positions` i8[tensors - 1]: where each tensor but the first begins in the group.

A single tensor is a group of one. Source: dfloat11 0.5.0; Zhang et al., "70% Size, 100% Accuracy" (2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.codec import Bits, NoGain, Parts
from edgekit.errors import CorruptWeights
from edgekit.formats._df11_luts import LONGEST, MOST_LUTS, SYMBOLS, lut_prefixes, read_luts, write_luts
from edgekit.formats._df11_reader import Stream, exponents
from edgekit.formats._df11_writer import BLOCK, CHUNK_BITS, PIECE, count_exponents, padded, write_stream
from edgekit.formats._huffman import canonical_codes, code_lengths
from edgekit.formats._parts import check_names, check_part, chunks, count_weights
from edgekit.processing import Array

MOST_WEIGHTS = 2**31 - 1  # in a group: the package's kernel counts in 32 bits
GAP_BITS = 5
NAMES = ("encoded_exponent", "sign_mantissa", "luts", "gaps", "output_positions", "split_positions")


def encode(bits: Bits) -> Parts:
    """Code patterns of any shape as a group of one tensor. Raises `NoGain` when the format cannot hold them."""
    return encode_group([bits])


def decode(parts: Mapping[str, Array], shape: tuple[int, ...], threads: int = 1) -> Bits:
    """The patterns of a group of one tensor, of this shape. Raises `CorruptWeights`. NumPy works on one thread."""
    return decode_group(parts, [shape])[0]


def encode_group(group: Sequence[Bits]) -> Parts:
    """Code tensors of any shapes as one stream. Raises `NoGain` when the format cannot hold them."""
    sizes = [bits.size for bits in group]
    count = sum(sizes)
    if min(sizes, default=0) < 1 or count > MOST_WEIGHTS:
        raise NoGain(f"df11 codes tensors of 1 to {MOST_WEIGHTS} weights together, not of {sizes}")
    exponent, sign_mantissa = _split(group, count)
    counts = count_exponents(exponent, count)
    if (large := int(counts[SYMBOLS:].sum())) > 0:
        raise NoGain(f"df11 cannot hold infinities, NaN or weights from 2^{SYMBOLS - 127} on, and there are {large}")
    lengths, codes = _choose_code(counts)
    total = int(counts @ lengths.astype(np.int64))
    stream, gaps, output_positions = write_stream(exponent, count, lengths, codes, total)
    return {
        "encoded_exponent": stream,
        "sign_mantissa": sign_mantissa,
        "luts": write_luts(lengths, codes),
        "gaps": _pack_gaps(gaps),
        "output_positions": output_positions.astype("<u4").view(np.uint8).copy(),
        "split_positions": np.cumsum(sizes[:-1], dtype=np.int64),
    }


def decode_group(parts: Mapping[str, Array], shapes: Sequence[tuple[int, ...]]) -> list[Bits]:
    """The patterns of every tensor of a group, which is as long as the shapes say. Raises `CorruptWeights`."""
    sizes = [count_weights(shape) for shape in shapes]
    check_names(parts, NAMES)
    sign_mantissa = check_part(parts, "sign_mantissa", "u1", (sum(sizes),))
    splits = check_part(parts, "split_positions", "i8", (len(sizes) - 1,))
    if splits.tolist() != np.cumsum(sizes[:-1]).tolist():
        raise CorruptWeights("'split_positions' does not cut where tensors of these shapes end")
    lengths, codes = read_luts(parts["luts"])
    bits = np.empty(sum(sizes), np.uint16)
    done = 0
    for part in exponents(stream_of(parts, sum(sizes)), lengths, codes):
        low = sign_mantissa[done : done + part.size].astype(np.uint16)
        bits[done : done + part.size] = (low & 0x80) << 8 | part.astype(np.uint16) << 7 | low & 0x7F
        done += part.size
    return [flat.reshape(shape) for flat, shape in zip(np.split(bits, splits), shapes, strict=True)]


def stream_of(parts: Mapping[str, Array], count: int) -> Stream:
    """The parts that say where the codes of `count` weights are. Raises `CorruptWeights` unless their sizes fit."""
    code = check_part(parts, "encoded_exponent", "u1", (parts["encoded_exponent"].size,))
    blocks = -(-code.size * 8 // (CHUNK_BITS * BLOCK))
    packed = check_part(parts, "gaps", "u1", (blocks * BLOCK * GAP_BITS // 8,))
    positions = check_part(parts, "output_positions", "u1", (parts["output_positions"].size // 4 * 4,))
    gaps = _unpack_gaps(packed)
    if gaps[:1].any():
        raise CorruptWeights(f"the first code starts {gaps[0]} bits into 'encoded_exponent', not at its begin")
    return Stream(
        code=code,
        gaps=gaps,
        output_positions=np.frombuffer(positions.tobytes(), "<u4"),
        blocks=blocks,
        count=count,
    )


def _choose_code(counts: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Lengths and codes by symbol, the longest that need no more tables than there are pointers.

    Every 8 bits less save a level of tables, and 8 bits are enough for 240 symbols.
    """
    for limit in range(LONGEST, 0, -8):
        lengths = code_lengths(counts, limit)
        codes = canonical_codes(lengths, limit)
        if len(lut_prefixes(lengths, codes)) <= MOST_LUTS:
            break
    return lengths, codes


def _split(group: Sequence[Bits], count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The exponents, padded for the writer, and the other 8 bits of all weights."""
    exponent, sign_mantissa = padded(count), np.empty(count, np.uint8)
    done = 0
    for flat in (bits.reshape(-1)[piece] for bits in group for piece in chunks(bits.size, PIECE)):
        exponent[done : done + flat.size] = flat >> 7 & 0xFF
        sign_mantissa[done : done + flat.size] = flat >> 8 & 0x80 | flat & 0x7F
        done += flat.size
    return exponent, sign_mantissa


def _pack_gaps(gaps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """8 gaps to 5 bytes."""
    joined = gaps.reshape(-1, 8).astype(np.uint64) @ (1 << GAP_BITS * np.arange(7, -1, -1, dtype=np.uint64))
    return joined.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -GAP_BITS:].flatten()


def _unpack_gaps(packed: Array) -> NDArray[np.uint8]:
    gaps = np.packbits(np.unpackbits(packed).reshape(-1, GAP_BITS), axis=1)[:, 0]
    return gaps >> np.uint8(8 - GAP_BITS)
