"""The df11x decoder: one program a group, one lane a thread, four weights a step, all lanes in lockstep.

20.9 instructions a weight in the SASS for sm_90, where 64-bit windows took 25. A plain table of 2048 entries would save
3 of them and wait for more cache lines.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgekit.kernels._triton_bits import advance, begin, four_weights, skip, window_at

LANES = tl.constexpr(128)
STEPS = tl.constexpr(32)  # of a whole group
FIRST_EXPONENT = tl.constexpr(127 + 20)  # of the float that eleven leading ones make


@triton.jit
def _entry(window, table, shift):
    """The entry of the code that a window begins with; see `make_table`."""
    inverted = ((~window) & 0xFFE00000) | 0x00100000
    return tl.load(table + (inverted.to(tl.float32).to(tl.uint32, bitcast=True) >> shift)).to(tl.uint32)


@triton.jit
def _two_codes(hi, lo, ahead, word, bit, stream, last_word, table, shift):
    """Two entries and the state after them: at most 22 of a window's 32 bits."""
    window = window_at(hi, lo, bit)
    first = _entry(window, table, shift)
    second = _entry(skip(window, first), table, shift)
    hi, lo, ahead, word, bit = advance(hi, lo, ahead, word, bit, bit + first + second, stream, last_word)
    return hi, lo, ahead, word, bit, first, second


@triton.jit(do_not_specialize=["last_word", "all_steps", "shift"])  # one binary for all sizes: graphs capture at once
def _decode(stream, group_off, lane_off, sm, table, groups, out, last_word, all_steps, shift, CHOSEN: tl.constexpr):
    table -= FIRST_EXPONENT << (23 - shift)
    place = tl.program_id(0).to(tl.int64)
    group = tl.load(groups + place) if CHOSEN else place
    lane = tl.arange(0, LANES)
    bit = tl.load(lane_off + group * LANES + lane).to(tl.uint32) * 4
    hi, lo, ahead, word, bit = begin(stream, tl.load(group_off + group) + (bit >> 5), bit, last_word)
    first_step = group * STEPS
    sm += first_step * LANES
    out += place * STEPS * LANES
    steps = tl.minimum(all_steps - first_step, STEPS).to(tl.int32)
    sm_ahead = tl.load(sm + lane)
    for step in tl.range(0, steps, loop_unroll_factor=2):
        sm_now = sm_ahead  # loaded one step early: a step takes less time than memory
        sm_ahead = tl.load(sm + tl.minimum(step + 1, steps - 1) * LANES + lane)
        hi, lo, ahead, word, bit, e0, e1 = _two_codes(hi, lo, ahead, word, bit, stream, last_word, table, shift)
        hi, lo, ahead, word, bit, e2, e3 = _two_codes(hi, lo, ahead, word, bit, stream, last_word, table, shift)
        tl.store(out + step * LANES + lane, four_weights(e0, e1, e2, e3, sm_now))


def decode(
    stream: torch.Tensor,
    group_off: torch.Tensor,
    lane_off: torch.Tensor,
    sm: torch.Tensor,
    table: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """bf16 `[sm.numel()]`, padding included, or the groups of these numbers (int64 `[n]`) as `[n, 16384]`.

    Runs on the current stream.
    """
    size = sm.shape if groups is None else (len(groups), 4 * LANES.value * STEPS.value)
    out = torch.empty(size, dtype=torch.bfloat16, device=sm.device)
    bits = (table.numel() // 12).bit_length() - 1
    with torch.cuda.device_of(sm):
        _decode[(len(lane_off if groups is None else groups),)](
            stream.view(torch.uint32),
            group_off.view(torch.uint32),
            lane_off.view(torch.uint16),
            sm.view(torch.uint32),
            table.view(torch.uint16),
            stream if groups is None else groups,
            out.view(torch.int64),
            stream.numel() - 1,
            sm.numel() // (4 * LANES.value),
            23 - bits,
            CHOSEN=groups is not None,
            num_warps=4,
        )
    return out
