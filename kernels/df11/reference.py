"""What `df11.decode` computes, by the format's own NumPy decoder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from edgekit.formats import df11
from edgekit.processing import Array


def decode(parts: Mapping[str, Array], count: int) -> torch.Tensor:
    """The `count` bf16 weights of a group, flat, on the CPU. Raises `CorruptWeights`."""
    one = {**parts, "split_positions": np.zeros(0, np.int64)}
    return torch.from_numpy(df11.decode(one, (count,)).view(np.int16)).view(torch.bfloat16)
