"""Two kernels over the DFloat11 layout's stream: one finds, once, where every 64th code begins; one decodes from there.

The layout itself only says which code is the first of 8 bytes: lanes would decode unlike numbers of weights, twice, and
write them to unaligned places. With the index every lane decodes 64, once, and writes 16 bytes at a time.
Instructions a weight in the SASS for sm_90: 23 where no code has more than 8 bits, 30 up to 20 bits, 36 above.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgekit.kernels._triton_bits import advance, begin, four_weights, window_at

LANES = tl.constexpr(128)
LANE = tl.constexpr(64)  # weights
CHUNKS = tl.constexpr(512)  # of 64 bits in a block
NESTED = tl.constexpr(1 << 15)


@triton.jit
def _entry(window, table, LEVELS: tl.constexpr):
    """The entry of the code that a window begins with; see `make_table`. Few codes are longer than 8 bits."""
    entry = tl.load(table + (window >> 24))
    if LEVELS > 1:
        entry = _nested(entry, (window >> 12) & 0xFFF, table)
    if LEVELS > 2:
        entry = _nested(entry, window & 0xFFF, table)
    return entry


@triton.jit
def _nested(entry, bits, table):
    return tl.load(table + (entry + bits) - NESTED, mask=entry >= NESTED, other=entry)


@triton.jit
def _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS: tl.constexpr):
    entry = _entry(window_at(hi, lo, bit), table, LEVELS)
    hi, lo, ahead, word, bit = advance(hi, lo, ahead, word, bit, bit + entry, stream, last_word)
    return hi, lo, ahead, word, bit, entry


@triton.jit(do_not_specialize=["last_word"])  # one binary for all sizes: graphs capture at once
def _decode(stream, block_start, lane_start, sm, table, out, last_word, LEVELS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    start = tl.load(block_start + block) + tl.load(lane_start + block * LANES + lane)
    hi, lo, ahead, word, bit = begin(stream, (start >> 5).to(tl.uint32), start.to(tl.uint32), last_word)
    sm += block * (LANES * LANE // 8) + lane
    out += block * (LANES * LANE // 4)
    place = lane[:, None] * (LANE // 4) + tl.arange(0, 2)[None, :]
    for step in range(0, LANE // 8, 2):
        hi, lo, ahead, word, bit, w0, w1 = _eight_weights(
            hi, lo, ahead, word, bit, stream, last_word, table, tl.load(sm + step * LANES), LEVELS
        )
        hi, lo, ahead, word, bit, w2, w3 = _eight_weights(
            hi, lo, ahead, word, bit, stream, last_word, table, tl.load(sm + (step + 1) * LANES), LEVELS
        )
        tl.store(out + place + step * 2, tl.join(w0, w1))  # one after the other: memory takes 32 bytes at a time
        tl.store(out + place + step * 2 + 2, tl.join(w2, w3))


@triton.jit
def _eight_weights(hi, lo, ahead, word, bit, stream, last_word, table, sm, LEVELS: tl.constexpr):
    """Two u64 of four bf16 patterns each, and the state after them."""
    hi, lo, ahead, word, bit, e0 = _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS)
    hi, lo, ahead, word, bit, e1 = _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS)
    hi, lo, ahead, word, bit, e2 = _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS)
    hi, lo, ahead, word, bit, e3 = _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS)
    low = four_weights(e0, e1, e2, e3, sm.to(tl.uint32))
    hi, lo, ahead, word, bit, e0 = _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS)
    hi, lo, ahead, word, bit, e1 = _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS)
    hi, lo, ahead, word, bit, e2 = _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS)
    hi, lo, ahead, word, bit, e3 = _code(hi, lo, ahead, word, bit, stream, last_word, table, LEVELS)
    return hi, lo, ahead, word, bit, low, four_weights(e0, e1, e2, e3, (sm >> 32).to(tl.uint32))


@triton.jit
def _next_code(w0, w1, w2, bit, table, LEVELS: tl.constexpr):
    """Whether a code begins at this bit of a chunk's 64, and where the next one does. Three words hold all of it."""
    inside = bit < 64
    entry = _entry(window_at(tl.where(bit < 32, w0, w1), tl.where(bit < 32, w1, w2), bit), table, LEVELS)
    return inside, bit + tl.where(inside, entry & 127, 0)


@triton.jit(do_not_specialize=["last_word", "count", "trips"])
def _find_starts(stream, gaps, first_weights, starts, table, last_word, count, trips, LEVELS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    chunk = block * CHUNKS + tl.arange(0, CHUNKS)
    gap = tl.load(gaps + chunk).to(tl.uint32)
    w0, w1, w2, _, bit = begin(stream, (chunk * 2).to(tl.uint32), gap, last_word)
    codes = tl.zeros([CHUNKS], tl.int32)
    for _ in range(trips):
        inside, bit = _next_code(w0, w1, w2, bit, table, LEVELS)
        codes += inside.to(tl.int32)
    weight = tl.load(first_weights + block) + tl.cumsum(codes, 0) - codes
    bit = gap
    for _ in range(trips):
        here = chunk * 64 + bit
        inside, bit = _next_code(w0, w1, w2, bit, table, LEVELS)
        tl.store(starts + weight // LANE, here, mask=inside & (weight % LANE == 0) & (weight < count))
        weight += inside.to(tl.int64)


def find_starts(
    stream: torch.Tensor,
    gaps: torch.Tensor,
    first_weights: torch.Tensor,
    table: torch.Tensor,
    count: int,
    trips: int,
    levels: int,
) -> torch.Tensor:
    """The bit where the code of every 64th weight begins, int64 `[blocks, 128]`; anything past the last weight.

    `gaps` uint8 has a value for each 64 bits of stream, `first_weights` int64 one for each 512 gaps; `trips` is the
    most codes that begin in 64 bits.
    """
    blocks = -(-count // (LANES.value * LANE.value))
    starts = torch.zeros((blocks, LANES.value), dtype=torch.int64, device=stream.device)
    with torch.cuda.device_of(stream):
        _find_starts[(first_weights.numel(),)](
            stream.view(torch.uint32),
            gaps,
            first_weights,
            starts,
            table.view(torch.uint32),
            stream.numel() - 1,
            count,
            trips,
            LEVELS=levels,
            num_warps=8,
        )
    return starts


def decode(
    stream: torch.Tensor,
    block_start: torch.Tensor,
    lane_start: torch.Tensor,
    sm: torch.Tensor,
    table: torch.Tensor,
    levels: int,
) -> torch.Tensor:
    """bf16 `[sm.numel()]`, padding included, on the current stream."""
    out = torch.empty(sm.numel(), dtype=torch.bfloat16, device=sm.device)
    with torch.cuda.device_of(sm):
        _decode[(block_start.numel(),)](
            stream.view(torch.uint32),
            block_start,
            lane_start,
            sm.view(torch.int64),
            table.view(torch.uint32),
            out.view(torch.int64),
            stream.numel() - 1,
            LEVELS=levels,
            num_warps=4,
        )
    return out
