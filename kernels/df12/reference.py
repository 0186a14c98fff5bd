"""What the df12 ops compute: the format's own NumPy decoder, and a matrix product in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from edgekit.formats import df12
from edgekit.processing import Array


def decode(parts: Mapping[str, Array], shape: tuple[int, ...]) -> torch.Tensor:
    """bf16 weights of this shape on the CPU. Raises `CorruptWeights` for parts that cannot be such a tensor."""
    return torch.from_numpy(df12.decode(parts, shape).view(np.int16)).view(torch.bfloat16)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` of dense tensors, float64: more precise than what it judges."""
    return torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
