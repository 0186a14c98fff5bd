"""A plain bf16 matrix-vector product in Triton: what the df12 one is measured beside, and nothing else."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# rows and columns at one step, warps: the fastest three of 24 on an H200, for long, wide and square matrices
TILINGS = ((2, 2048, 4), (4, 2048, 4), (4, 1024, 8))


@triton.jit
def _gemv(x, weight, y, rows, columns: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    base = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * columns
    sums = tl.zeros([BN, BK], tl.float32)
    for start in range(0, columns, BK):
        column = (start + tl.arange(0, BK))[None, :]
        w = tl.load(weight + base + column, mask=column < columns, other=0.0, eviction_policy="evict_first")
        met = tl.load(x + column, mask=column < columns, other=0.0)
        sums = tl.fma(w.to(tl.float32), tl.broadcast_to(met.to(tl.float32), [BN, BK]), sums)
    tl.store(y + row, tl.sum(sums, 1).to(y.dtype.element_ty), mask=row < rows)


def gemv(x: torch.Tensor, weight: torch.Tensor, tiling: tuple[int, int, int]) -> torch.Tensor:
    """bf16 `[1, N]` from `x[1, K]` and `weight[N, K]`."""
    rows, columns = weight.shape
    tall, wide, warps = tiling
    y = torch.empty((1, rows), dtype=x.dtype, device=x.device)
    _gemv[(-(-rows // tall),)](x, weight, y, rows, columns=columns, BN=tall, BK=wide, num_warps=warps)
    return y
