"""What `df11x.decode` computes, by the format's own NumPy decoder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from edgekit.formats import df11x
from edgekit.processing import Array


def decode(parts: Mapping[str, Array], shape: tuple[int, ...]) -> torch.Tensor:
    """bf16 weights of this shape on the CPU. Raises `CorruptWeights` for parts that cannot be such a tensor."""
    return torch.from_numpy(df11x.decode(parts, shape).view(np.int16)).view(torch.bfloat16)
