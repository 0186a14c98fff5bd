"""bf16 weights for the tests of the lossless codecs, as bit patterns."""

from __future__ import annotations

import numpy as np

from edgekit.codec import Bits
from edgekit.kernels._trained_like import bf16, layer

__all__ = ["Bits", "bf16", "exponent_entropy", "layer", "layer_with_every_pattern"]


def layer_with_every_pattern() -> Bits:
    """A layer large enough that all 65,536 patterns, strewn over it, are rare."""
    weights = layer(2048, 2048)
    rng = np.random.default_rng(1)
    weights.reshape(-1)[rng.choice(weights.size, 1 << 16, replace=False)] = np.arange(1 << 16)
    return weights


def exponent_entropy(bits: Bits) -> float:
    """Bits of information in an exponent."""
    counts = np.bincount(bits.reshape(-1) >> 7 & 0xFF)
    share = counts[counts > 0] / bits.size
    return float(-(share * np.log2(share)).sum())
