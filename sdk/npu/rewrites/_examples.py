"""What the random modules of several rewrites share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn

from edgekit.npu.rewriting import Example


def seeded(make: Callable[[int], Example]) -> Callable[[int], Example]:
    """Draw everything from the seed, and leave torch's own generator as it was."""

    @wraps(make)
    def drawn(seed: int) -> Example:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make(seed)

    return drawn


def size(least: int, most: int) -> int:
    """A whole number between two, both included."""
    return int(torch.randint(least, most + 1, ()))


def worn(module: nn.Module) -> nn.Module:
    """Norms as after training: random factors, shifts and statistics."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.LayerNorm | nn.RMSNorm):
            if norm.weight is not None:
                nn.init.uniform_(norm.weight, 0.3, 1.7)
            if getattr(norm, "bias", None) is not None:
                nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    return module


class Residual(nn.Module):
    """A stream of `width` channels that is written by patches or tokens, positions and blocks, and read by norms."""

    def __init__(self, seed: int, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.tokens = bool(seed % 2)
        self.embed: nn.Module = nn.Embedding(11, width) if self.tokens else nn.Conv2d(3, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 6, width))
        inner = size(1, 9)
        self.blocks = nn.ModuleList(
            nn.Sequential(norm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width, bias=bool(seed % 3)))
            for _ in range(1 + seed % 7 // 6)
        )
        self.norm, self.head = norm(width), nn.Linear(width, size(1, 4))

    def inputs(self) -> dict[str, Tensor]:
        """Two sequences of six tokens, or two images of six patches."""
        return {"input": torch.randint(0, 11, (2, 6)) if self.tokens else torch.randn(2, 3, 4, 6)}

    def forward(self, input: Tensor) -> Tensor:
        stream = self.embed(input)
        stream = (stream if self.tokens else stream.flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            stream = stream + block(stream)
        answer: Tensor = self.head(self.norm(stream[:, 1:]))
        return answer
