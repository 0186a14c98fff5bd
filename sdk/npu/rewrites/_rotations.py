"""Orthogonal matrices that spread what one channel holds over all of them.

Source: Sylvester (1867) and Paley (1933) for Hadamard matrices; QuIP# (arXiv 2402.04396), section 3, for signs drawn
at random before one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SEED = 0  # the same rotation for the same width, always


def rotation(width: int) -> Tensor:
    """`[width, width]` float64: a Hadamard matrix with random signs where one is known here, else a random rotation."""
    generator = torch.Generator().manual_seed(SEED)
    if (hadamard := hadamard_matrix(width)) is not None:
        signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
        return hadamard * signs / math.sqrt(width)
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    orthogonal, upper = torch.linalg.qr(square)
    turned: Tensor = orthogonal * upper.diagonal().sign()  # else not uniform: Mezzadri (math-ph/0609050), section 5
    return turned


def hadamard_matrix(width: int) -> Tensor | None:
    """Entries of -1 and 1, orthogonal rows; for `2^k` and `2^k (p + 1)` with a prime p of 3 modulo 4, as 12, 20, 24."""
    doublings = 0
    while width % 2 == 0 and width > 2 and not _is_paley(width):
        width, doublings = width // 2, doublings + 1
    if width in (1, 2):
        found = torch.ones(1, 1, dtype=torch.float64)
        doublings += width - 1
    elif _is_paley(width):
        found = _paley(width - 1)
    else:
        return None
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for _ in range(doublings):
        found = torch.kron(pair, found)
    return found


def _is_paley(width: int) -> bool:
    prime = width - 1
    return prime % 4 == 3 and all(prime % factor for factor in range(2, math.isqrt(prime) + 1))


def _paley(prime: int) -> Tensor:
    """`I + S`, with S of Legendre symbols: Paley's first construction."""
    squares = {number * number % prime for number in range(1, prime)}
    symbol = torch.tensor(
        [0.0, *(1.0 if number in squares else -1.0 for number in range(1, prime))], dtype=torch.float64
    )
    places = (torch.arange(prime)[:, None] - torch.arange(prime)[None]) % prime
    skew = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    skew[1:, 1:] = symbol[places]
    return skew + torch.eye(prime + 1, dtype=torch.float64)
