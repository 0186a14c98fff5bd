"""The eight weights of a df12 word, in registers: by byte permutes on NVIDIA, by shifts elsewhere."""

from __future__ import annotations

import triton
import triton.language as tl

# A byte permute looks four indices up in the palette at once; two more lay low and high bytes side by side. 11
# instructions for 8 weights. Bit 3 of a permute's selector means something else, hence the mask.
_PERMUTES = tl.constexpr("""
{
.reg .b32 index, high0, high1, signs;
and.b32 index, $4, 0x77777777;
prmt.b32 high0, $7, $8, index;
shr.u32 index, index, 16;
prmt.b32 high1, $7, $8, index;
lop3.b32 high0, high0, $4, 0x80808080, 0xF8;
shl.b32 signs, $4, 4;
lop3.b32 high1, high1, signs, 0x80808080, 0xF8;
prmt.b32 $0, $5, high0, 0x5140;
prmt.b32 $1, $5, high0, 0x7362;
prmt.b32 $2, $6, high1, 0x5140;
prmt.b32 $3, $6, high1, 0x7362;
}
""")


@triton.jit
def unpack(word, low, palette, ASM: tl.constexpr):
    """Four int32 of two bf16 patterns each, weights (0, 1) to (6, 7), from words (int32) and their low bytes (int64).

    `palette` points to two int32. Source: `sdk/formats/df12.py`, words and value.
    """
    low_half = low.to(tl.int32)
    high_half = (low >> 32).to(tl.int32)
    first, second = tl.load(palette), tl.load(palette + 1)
    if ASM:
        return tl.inline_asm_elementwise(
            _PERMUTES,
            "=r,=r,=r,=r,r,r,r,r,r",
            [word, low_half, high_half, first, second],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    table = (first.to(tl.uint32, bitcast=True).to(tl.uint64)) | (second.to(tl.uint32, bitcast=True).to(tl.uint64) << 32)
    bits = word.to(tl.uint32, bitcast=True)
    p0 = _pattern(bits, low_half, table, 0, 1, 0) | (_pattern(bits, low_half, table, 1, 3, 8) << 16)
    p1 = _pattern(bits, low_half, table, 2, 5, 16) | (_pattern(bits, low_half, table, 3, 7, 24) << 16)
    p2 = _pattern(bits, high_half, table, 4, 0, 0) | (_pattern(bits, high_half, table, 5, 2, 8) << 16)
    p3 = _pattern(bits, high_half, table, 6, 4, 16) | (_pattern(bits, high_half, table, 7, 6, 24) << 16)
    return p0, p1, p2, p3


@triton.jit
def _pattern(bits, low, table, i: tl.constexpr, sign_nibble: tl.constexpr, shift: tl.constexpr):
    """Weight i: sign, palette entry, low byte."""
    index = (bits >> (4 * i)) & 7
    high = ((table >> (index * 8).to(tl.uint64)) & 255).to(tl.int32)
    sign = ((bits >> (4 * sign_nibble + 3)) & 1).to(tl.int32)
    return (sign << 15) | (high << 8) | ((low >> shift) & 255)


@triton.jit
def as_float(pair):
    """Both weights of a pair as float32: a bf16 is the upper half of one."""
    return (pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True)


@triton.jit
def as_bf16(pair):
    """Both weights of a pair as they are."""
    first = pair.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return first, (pair >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
