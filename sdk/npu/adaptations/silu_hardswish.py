"""SiLU as hard-swish, which convolution engines compute with their product; it needs repair.

20.7 dB on N(0, 1). Source: MobileNetV3 (arXiv 1905.02244), section 5.2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgekit.layered import LayeredModule
from edgekit.npu.adaptation import Seen, Site
from edgekit.npu.adaptations._activation import SILU, sites_of
from edgekit.npu.rules import NpuRules

TITLE, GROUP, RANK = "SiLU by hard-swish", "act", 43


def sites(model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
    """Every SiLU."""
    yield from sites_of(model, SILU)


def apply(model: LayeredModule, site: Site, seen: Seen) -> None:
    """One op for another."""
    node = site.node
    model.replace(node, model.op(torch.ops.aten.hardswish.default, *node.args, at=node))
