"""Steps that the Huffman decoders share. A table's entry is `exponent << 7 | length`: the exponent as bf16 has it.

Windows have 32 bits: 64-bit shifts are several instructions. LLVM makes one `SHF.L.W` of each of the two shifts below,
so no inline assembly is needed; it takes its count modulo 32, so lengths may be summed with the exponents above them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def window_at(hi, lo, bit):
    """The 32 bits that begin `bit % 32` bits into the word `hi`, which `lo` follows."""
    turn = bit & 31
    return (hi << turn) | ((lo >> 1) >> (turn ^ 31))


@triton.jit
def skip(window, entry):
    """The window after the code of an entry, below 32 bits long; what comes in at its end are not the stream's bits."""
    turn = entry & 31
    return (window << turn) | (window >> ((32 - turn) & 31))


@triton.jit
def advance(hi, lo, ahead, word, bit, end, stream, last_word):
    """The state when bit `end` is next, at most 32 after `bit`: a bit 5 that changes says that `hi` is used up.

    `ahead` is the word after `lo`, loaded before it is needed, and `word` its index. No index leaves the stream,
    whatever it holds: damaged weights decode to wrong ones, without a fault.
    """
    crossed = ((bit ^ end) & 32) != 0
    word += crossed.to(tl.uint32)
    hi = tl.where(crossed, lo, hi)
    lo = tl.where(crossed, ahead, lo)
    ahead = tl.load(stream + tl.minimum(word, last_word), mask=crossed, other=ahead)
    return hi, lo, ahead, word, end


@triton.jit
def begin(stream, word, bit, last_word):
    """The state at bit `bit % 32` of a word."""
    hi = tl.load(stream + tl.minimum(word, last_word))
    lo = tl.load(stream + tl.minimum(word + 1, last_word))
    ahead = tl.load(stream + tl.minimum(word + 2, last_word))
    return hi, lo, ahead, word + 2, bit


@triton.jit
def four_weights(first, second, third, fourth, sm):
    """Four bf16 patterns as a u64, from their entries and the u32 of their sign and mantissa bytes."""
    low = _two_weights(first | (second << 16), sm << 8, sm)
    high = _two_weights(third | (fourth << 16), sm >> 8, sm >> 16)
    return low.to(tl.uint64) | (high.to(tl.uint64) << 32)


@triton.jit
def _two_weights(entries, at_byte_2, at_byte_0):
    """The first one's sign and mantissa are byte 0 of one word, the second one's byte 2 of another."""
    sm = (at_byte_2 & 0x00FF0000) | (at_byte_0 & 0xFF00FFFF)
    bits = (entries & 0x7F807F80) | (sm & 0x807F807F)
    return (bits & 0x7FFF7FFF) | ((sm << 8) & 0x80008000)
