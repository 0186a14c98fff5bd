"""The factors and shifts at the end of LayerNorm and RMSNorm folded into the products that read them.

`W (gamma * x + beta) + b = (W gamma) x + (b + W beta)`: one or two ops less for each token, and one outlier channel of
gamma less for a grid to hold.
Source: QuaRot (arXiv 2404.00456), section 4, stage 1a; SliceGPT (arXiv 2401.15024), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.norms import Norm, norm_of, set_affine
from edgekit.npu.products import Owners
from edgekit.npu.rewrites._affine import Affine, fold_into_readers
from edgekit.npu.rewrites._examples import seeded, size, worn
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "factors and shifts of norms folded into the products behind them"
EXACTNESS = "exact"
STAGE, RANK = "folds", 4


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every norm over the last axis that has factors."""
    owners = Owners(model)
    for node in list(model.graph.nodes):
        norm = norm_of(model, node)
        if norm is None or norm.plain:
            continue
        affine, last = _affine(norm), len(shape_of(node)) - 1
        if reason := owners.shared(node) or fold_into_readers(model, node, last, affine, owners):
            yield skipped(node, reason)
            continue
        set_affine(model.get_submodule(str(node.target)), None, None)
        yield done(node)


def _affine(norm: Norm) -> Affine:
    factors = torch.ones(norm.channels, dtype=torch.float64) if norm.weight is None else norm.weight.detach().double()
    return Affine(factors, torch.zeros_like(factors) if norm.bias is None else norm.bias.detach().double())


@seeded
def example(seed: int) -> Example:
    """Norms before linear layers and 1x1 convolutions, with one reader or three."""
    channels, length = size(2, 9), size(1, 6)
    norm: nn.Module = nn.RMSNorm(channels) if seed % 3 == 0 else nn.LayerNorm(channels, bias=seed % 3 == 1)
    readers = [_reader(channels, size(1, 8), convolution=bool(seed % 2)) for _ in range(size(1, 3))]
    return Example(worn(_Block(norm, readers)), {"input": torch.randn(2, length, channels)})


def _reader(inner: int, outer: int, convolution: bool) -> nn.Module:
    return nn.Conv2d(inner, outer, 1) if convolution else nn.Linear(inner, outer, bias=False)


class _Block(nn.Module):
    def __init__(self, norm: nn.Module, readers: list[nn.Module]) -> None:
        super().__init__()
        self.norm, self.readers = norm, nn.ModuleList(readers)

    def forward(self, input: torch.Tensor) -> list[torch.Tensor]:
        normed = self.norm(input)
        image = normed[:, None].permute(0, 3, 1, 2)
        return [reader(image if isinstance(reader, nn.Conv2d) else normed) for reader in self.readers]
