"""Batch norms folded into the convolutions behind them, where those put no zeros around: pre-activation blocks.

`W (s x + t) + b = (W s) x + (b + sum(W) t)` holds inside of the image. A border of zeros is zeros after the norm, and
would be `-t / s` before it: folding through it is wrong in every window that sees the border, and is refused.
Source: Jacob et al. (arXiv 1712.05877), section 3.2, applied to the next layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekit.layered import LayeredModule
from edgekit.npu.products import Owners
from edgekit.npu.rewrites._affine import fold_into_readers, of_batch_norm
from edgekit.npu.rewrites._examples import seeded, size, worn
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "batch norms folded into the convolutions behind them"
EXACTNESS = "exact"
STAGE, RANK = "folds", 2


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every batch norm that all of its readers can take."""
    owners = Owners(model)
    for node in list(model.graph.nodes):
        layer = model.layer_of(node)
        if layer is None or (affine := of_batch_norm(layer)) is None:
            continue
        if reason := owners.shared(node) or fold_into_readers(model, node, 1, affine, owners):
            yield skipped(node, reason)
            continue
        outcome = done(node)
        model.replace(node, node.all_input_nodes[0])
        yield outcome


@seeded
def example(seed: int) -> Example:
    """A batch norm read by one or two convolutions without borders."""
    groups, spatial = size(1, 3), size(1, 2)
    inner, outer, window = groups * size(1, 3), groups * size(1, 3), size(1, 3)
    norm, kind = (nn.BatchNorm1d, nn.BatchNorm2d)[spatial - 1], (nn.Conv1d, nn.Conv2d)[spatial - 1]
    convolutions = [kind(inner, outer, window, groups=groups, bias=bool(seed % 2)) for _ in range(size(1, 2))]
    body = worn(_Fork(norm(inner), convolutions))
    return Example(body, {"input": torch.randn(2, inner, *[6, 5][:spatial])})


class _Fork(nn.Module):
    def __init__(self, norm: nn.Module, readers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norm, self.readers = norm, nn.ModuleList(readers)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        normed = self.norm(torch.tanh(input))
        return torch.stack([reader(normed) for reader in self.readers]).sum(0)
