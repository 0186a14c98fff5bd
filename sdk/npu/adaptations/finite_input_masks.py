"""Masks of minus infinity that the model's inputs decide, as finite ones: a sentence that is shorter than its tensor.

Equal behind a softmax but in a row that is masked as a whole, which gets the softmax of its logits instead of an even
one. Whether inputs have such rows nobody knows beforehand: the samples say whether real ones do.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.layered import LayeredModule
from edgekit.npu.adaptation import Seen, Site
from edgekit.npu.rewrites.finite_masks import INTEGER, input_masks, make_finite
from edgekit.npu.rules import NpuRules

TITLE, GROUP, RANK = "masks that inputs decide as finite ones", "attention", 5


def sites(model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
    """Every op that puts minus infinity before a softmax where an input says so. All layers may read one such mask."""
    for node, reason in input_masks(model):
        yield Site(node=node, block="", refused=reason)


def apply(model: LayeredModule, site: Site, seen: Seen) -> None:
    """Another number in its place."""
    make_finite(model, site.node, INTEGER)
