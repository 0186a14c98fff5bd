"""df11x: Huffman-coded exponents in lanes that decode in lockstep; the smallest form, about 10.9 bits a weight.

A bf16 pattern `w` is sign, eight exponent bits and seven mantissa bits. Sign and mantissa hardly compress and are kept
as a byte; the exponent is coded with 1 to 11 bits. The layout is made for machines whose threads must take the same
step: each of 128 lanes decodes the same number of weights, and in each step neighbouring lanes read and write
neighbouring memory.

**Order.** The tensor is flat, n weights in C order. A group is 16384 weights, 32 steps of 512; the last group has as
many steps as its weights need, so only its last step is padded. In a group, weight u = 0..3 of lane l = 0..127 in step
i is number `(i*128 + l)*4 + u`: a lane's weights, in the order of its stream, are (i, u) = (0,0), (0,1), (0,2), (0,3),
(1,0), ...

**Parts**, all little-endian, for G = ceil(n / 16384) groups and P = 512 * ceil(n / 512) weights with padding:

| name | dtype, shape | content |
|---|---|---|
| `lengths` | u1[256] | bits of the code of each exponent, 1 to 11; 0 for those that do not occur |
| `group_off` | u4[G + 1] | where a group's stream begins, in words; from 0 to W |
| `lane_off` | u2[G, 128] | where a lane begins inside its group, in units of four bits |
| `stream` | u4[W + 2] | codes from the most significant bit of each word down; at the end two words of zeros |
| `sm` | u1[P] | `(w >> 8 & 0x80) + (w & 0x7f)`: sign and mantissa in the tensor's order, padded with 0 |

**Codes** are canonical: sorted by (length, exponent), the first code is 0 and each next one is `(code + 1) << (length -
previous length)`. They are complete: the sum of `2**-length` is 1. A lone exponent has length 1 and code 0. Eleven bits
cost under 0.01 bit a weight against unlimited ones, and make the decoder's table 2048 entries.

**Stream.** Lane l of group g begins at bit `32*group_off[g] + 4*lane_off[g, l]`; `lane_off[g, 0]` is 0. A lane's codes
follow each other without gaps; it ends with zeros up to the next multiple of four bits, where the next lane begins, and
the last lane with zeros up to the next word, where the next group begins. Four-bit units let 128 lanes of 128 codes of
11 bits fit the u2. Padding weights have the most frequent exponent (ties to the smaller), sign and mantissa are 0.

**Damage** shows where a lane does not end at the beginning of the next one. A decoder must not let a lane read past the
stream: damaged codes lead up to 1408 bits on from where it begins.

**Value.** `(sm & 0x80) << 8 | exponent << 7 | sm & 0x7f`.

**Example.** Three weights 1.0, -1.5, 0.25 = 0x3f80, 0xbfc0, 0x3e80 have exponents 127, 127, 125. Padded to 512, 511 are
127 and one is 125: `lengths[125] = lengths[127] = 1`, codes 0 and 1. `sm` is 00 c0 00 and zeros. One group of one step:
lane 0 holds the codes 1 1 0 1 in four bits, every other lane 1 1 1 1, so `lane_off[0]` is 0, 1, 2, ..., 127 and the
stream is 0xdfffffff, 15 words of 0xffffffff and two zeros; `group_off` is 0, 16.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.codec import Bits, Parts
from edgekit.errors import CorruptWeights
from edgekit.formats._huffman import canonical_codes, code_lengths, is_complete, lookup_table, put
from edgekit.formats._native_decoder import fill, library
from edgekit.formats._parts import CHUNK, check_names, check_offsets, check_part, chunks, count_weights, pattern_counts
from edgekit.processing import Array

LANES = 128
STEP = 4 * LANES  # weights
GROUP = 32 * STEP
LIMIT = 11  # bits of a code
NAMES = ("lengths", "group_off", "lane_off", "stream", "sm")


def encode(bits: Bits) -> Parts:
    """The parts of a tensor with at least one weight."""
    flat = bits.reshape(-1)
    counts = pattern_counts(flat).reshape(2, 256, 128).sum(axis=(0, 2))  # by exponent
    filler = int(counts.argmax())
    counts[filler] += -flat.size % STEP
    lengths = code_lengths(counts, LIMIT)
    table = _pair_table(lengths)
    sm = np.zeros(flat.size + -flat.size % STEP, np.uint8)
    sizes, lanes, streams = [], [], []
    for part in _group_slices(flat.size):
        weights = flat[part]
        sm[part] = weights >> 8 & 0x80 | weights & 0x7F
        exponent = np.full(len(weights) + -len(weights) % STEP, filler, np.uint8)
        exponent[: len(weights)] = weights >> 7  # the sign falls off
        size, lane, stream = _pack_groups(exponent.reshape(-(-len(weights) // GROUP), -1, LANES, 4), table)
        sizes.append(size)
        lanes.append(lane)
        streams.append(stream)
    return {
        "lengths": lengths,
        "group_off": np.concatenate([[0], *sizes]).cumsum().astype(np.uint32),
        "lane_off": np.concatenate(lanes),
        "stream": np.concatenate([*streams, np.zeros(2, np.uint32)]),
        "sm": sm,
    }


def _group_slices(count: int) -> list[slice]:
    """Slices of whole groups, and one of the last group when it has fewer steps."""
    whole = count // GROUP * GROUP
    tail = [slice(whole, count)] if whole < count else []
    return [*chunks(whole, CHUNK), *tail]


def _pair_table(lengths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """`[65536]`, by first exponent | second << 8: both codes as one string, `length << 24 | string`."""
    code, length = canonical_codes(lengths, LIMIT), lengths.astype(np.uint32)
    string = code[None, :] << length[:, None] | code[:, None]  # [second, first]
    return ((length[None, :] + length[:, None]) << np.uint32(24) | string).reshape(-1)


def _pack_groups(exponent: NDArray[np.uint8], table: NDArray[np.uint32]) -> tuple[Array, Array, Array]:
    """Words of each group `[g]`, `lane_off` `[g, LANES]` and the stream of exponents `[g, steps, LANES, 4]`."""
    pairs = table[exponent.view("<u2")]
    first, second = pairs[..., 0], pairs[..., 1]
    mask = np.uint32((1 << 24) - 1)
    second_length = second >> 24
    code = (first & mask).astype(np.uint64) << second_length.astype(np.uint64) | second & mask
    code = np.ascontiguousarray(code.swapaxes(1, 2))  # four weights each, [g, LANES, steps]
    length = np.ascontiguousarray(((first >> 24) + second_length).swapaxes(1, 2)).astype(np.int64)
    ends = length.cumsum(axis=2)
    nibbles = (ends[..., -1] + 3) // 4
    lane_ends = nibbles.cumsum(axis=1)
    lane_off = lane_ends - nibbles
    sizes = (lane_ends[:, -1] + 7) // 8
    group_off = sizes.cumsum() - sizes
    words = np.zeros((int(sizes.sum()) + 1) // 2, np.uint64)
    start = 32 * group_off[:, None] + 4 * lane_off
    put(words, (start[..., None] + ends - length).reshape(-1), code.reshape(-1), length.reshape(-1))
    stream = words.astype(">u8").view(">u4")[: sizes.sum()].astype(np.uint32)
    return sizes, lane_off.astype(np.uint16), stream


def check(parts: Mapping[str, Array], shape: tuple[int, ...]) -> None:
    """Raise `CorruptWeights` unless sizes, code and offsets fit each other and the shape.

    A decoder may then start every lane, but must not trust how far it leads: where lanes end only decoding shows.
    """
    count = count_weights(shape)
    groups = -(-count // GROUP)
    check_names(parts, NAMES)
    lengths = check_part(parts, "lengths", "u1", (256,))
    if not is_complete(lengths, LIMIT):
        raise CorruptWeights(f"the code lengths are no complete prefix code of at most {LIMIT} bits")
    check_part(parts, "sm", "u1", (count + -count % STEP,))
    words = max(parts["stream"].size - 2, 0)
    check_part(parts, "stream", "<u4", (words + 2,))
    check_offsets("group_off", check_part(parts, "group_off", "<u4", (groups + 1,)), words)
    lane_off = check_part(parts, "lane_off", "<u2", (groups, LANES)).astype(np.int64)
    if lane_off[:, 0].any() or (np.diff(lane_off, axis=1) < 0).any():
        raise CorruptWeights("'lane_off' does not rise from 0 in every group")
    if (lane_off[:, -1] > 8 * np.diff(parts["group_off"].astype(np.int64))).any():
        raise CorruptWeights("'lane_off' leads out of its group")


def decode(parts: Mapping[str, Array], shape: tuple[int, ...], threads: int = 1) -> Bits:
    """The patterns of these parts. Raises `CorruptWeights` for parts that cannot be a tensor of this shape."""
    check(parts, shape)
    out = np.empty(count_weights(shape), np.uint16)
    if native := library():
        fill(native.decode_df11x, out, [parts[name] for name in NAMES], len(parts["lane_off"]), 1, threads)
    else:
        unpack(parts, out)
    return out.reshape(shape)


def unpack(parts: Mapping[str, Array], out: Bits) -> None:
    """Fill `out` `[n]` from parts that were checked. This defines what the native decoder does."""
    table, group_off = lookup_table(parts["lengths"], LIMIT), parts["group_off"].astype(np.int64)
    for part in _group_slices(out.size):
        groups = slice(part.start // GROUP, -(-part.stop // GROUP))
        begin, end = group_off[groups.start], group_off[groups.stop]
        stream = parts["stream"][begin : end + 2].astype(np.uint64)
        edges = group_off[groups.start : groups.stop + 1] - begin
        steps = min(32, -(-(part.stop - part.start) // STEP))
        exponent = _unpack_groups(stream, edges, parts["lane_off"][groups], table, steps)[: part.stop - part.start]
        sm = parts["sm"][part].astype(np.uint16)
        out[part] = (sm & 0x80) << 8 | exponent.astype(np.uint16) << 7 | sm & 0x7F


def _unpack_groups(
    stream: NDArray[np.uint64], group_off: Array, lane_off: Array, table: NDArray[np.uint16], steps: int
) -> NDArray[np.uint8]:
    """The exponents, flat. `group_off` counts from the beginning of `stream`, which has two words more than that."""
    ahead = stream[:-1] << np.uint64(32) | stream[1:]  # the 64 bits from each word on
    starts = 32 * group_off[:-1, None] + 4 * lane_off.astype(np.int64)
    out = np.empty((len(starts), steps, LANES, 4), np.uint8)
    position = starts.copy()
    for step in range(steps):
        for u in (0, 2):  # two codes of 11 bits are in the 33 that follow any bit of a word
            window = ahead.take(position >> 5, mode="clip") << (position & 31).astype(np.uint64)
            first = table[window >> np.uint64(64 - LIMIT)]
            second = table[(window << (first & 15).astype(np.uint64)) >> np.uint64(64 - LIMIT)]
            out[:, step, :, u], out[:, step, :, u + 1] = first >> 4, second >> 4
            position += (first & 15) + (second & 15)
    ends = np.concatenate([starts[:, 1:], 32 * group_off[1:, None]], axis=1)
    unit = np.array([4] * (LANES - 1) + [32])  # what a lane's end is rounded up to
    if ((position + unit - 1) // unit * unit != ends).any():
        raise CorruptWeights("a lane does not end where the next one begins")
    return out.reshape(-1)
