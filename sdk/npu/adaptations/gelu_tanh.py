"""GELU in its form by tanh, for compilers that have no error function.

74 dB on N(0, 1), at most 4.7e-4 away. Source: GELU (arXiv 1606.08415), section 2.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.layered import LayeredModule
from edgekit.npu.adaptation import Seen, Site
from edgekit.npu.adaptations._activation import GELU, sites_of
from edgekit.npu.rules import NpuRules

TITLE, GROUP, RANK = "GELU by tanh", "act", 40


def sites(model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
    """Every GELU by the error function."""
    for site in sites_of(model, GELU):
        if site.node.kwargs.get("approximate", "none") == "none":
            yield site


def apply(model: LayeredModule, site: Site, seen: Seen) -> None:
    """Ask for the other form."""
    node = site.node
    model.replace(node, model.op(GELU, *node.args, at=node, approximate="tanh"))
