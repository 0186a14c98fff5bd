"""GELU as hardswish(1.702 x) / 1.702, which convolution engines compute with their product; it needs repair.

25.2 dB on N(0, 1). Both scales go into the layers around it where only they are concerned. Source: GELU (arXiv
1606.08415), section 2, for the slope of its sigmoid form; MobileNetV3 (arXiv 1905.02244), section 5.2, for hard-swish.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgekit.layered import LayeredModule
from edgekit.npu.adaptation import Seen, Site
from edgekit.npu.adaptations._activation import GELU, scale_after, scale_before, sites_of
from edgekit.npu.rules import NpuRules

TITLE, GROUP, RANK = "GELU by hard-swish", "act", 42
SLOPE = 1.702


def sites(model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
    """Every GELU."""
    yield from sites_of(model, GELU)


def apply(model: LayeredModule, site: Site, seen: Seen) -> None:
    """hardswish(x SLOPE) / SLOPE."""
    steep = scale_before(model, site, SLOPE)
    hard = model.op(torch.ops.aten.hardswish.default, steep, at=site.node)
    model.replace(site.node, hard)
    scale_after(model, hard, 1 / SLOPE, site.block)
