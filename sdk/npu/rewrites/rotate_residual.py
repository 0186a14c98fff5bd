"""The residual stream turned by an orthogonal matrix, so that no channel of it holds outliers alone.

RMSNorm divides by a length, which a rotation keeps: `RMSNorm(Q x) = Q RMSNorm(x)`. What writes the stream becomes
`Q W`, what reads its norms `W Q^T`, and the model's answers stay. Norms must have no factors (`fold_norm_affine`) and
subtract no mean (`center_residual`).
Source: QuaRot (arXiv 2404.00456), section 4, stage 1; SpinQuant (arXiv 2405.16406), section 3.1, R1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn
from torch.fx import Node

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.channel_maps import map_readers, map_writers, why_not_reads, why_not_writes
from edgekit.npu.channels import LINEAR, Passage, Sources, Stream, passage, stream
from edgekit.npu.norms import norm_of
from edgekit.npu.products import Owners
from edgekit.npu.rewrites._examples import Residual, seeded, size, worn
from edgekit.npu.rewrites._rotations import rotation
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "residual streams rotated, so that outliers spread over all channels"
EXACTNESS = "exact"
STAGE, RANK = "ranges", 3


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every stream that an RMSNorm without factors reads."""
    owners, seen = Owners(model), set[Node]()
    for node in list(model.graph.nodes):
        norm = norm_of(model, node)
        if norm is None or node in seen:
            continue
        found = stream(norm.input, len(shape_of(node)) - 1, _through_norms(model))
        norms = [each for each in found.axis if norm_of(model, each)] if found else [node]
        seen.update({node, *norms})
        if reason := _why_not(model, node, found, owners):
            yield skipped(node, reason)
            continue
        assert found is not None
        turn = rotation(norm.channels)
        map_writers(model, found, turn)
        map_readers(model, found, turn.T)
        for each in norms:
            yield done(each)


def _through_norms(model: LayeredModule) -> Passage:
    """Ops that commute with rotations: linear ones, and RMSNorms without factors over the channels."""
    linear = passage(LINEAR)

    def through(node: Node, axis: int) -> Sources:
        norm = norm_of(model, node)
        if norm and norm.kind == "rms_norm" and norm.plain and axis == len(shape_of(node)) - 1:
            return {norm.input: axis}
        return linear(node, axis)

    return through


def _why_not(model: LayeredModule, node: Node, found: Stream | None, owners: Owners) -> str | None:
    if found is None:
        return "its input has channels along two axes"
    for reader in (node, *(reader for _, reader in found.readers)):
        norm = norm_of(model, reader)
        if norm and norm.kind == "layer_norm":
            return "a LayerNorm subtracts a mean, which a rotation does not keep: center_residual comes first"
        if norm and not norm.plain:
            return "its factors stand between the stream and what reads it: fold_norm_affine comes first"
    return why_not_writes(model, found, owners) or why_not_reads(model, found, owners)


@seeded
def example(seed: int) -> Example:
    """A residual stream over tokens or images without factors; widths with and without a Hadamard matrix."""
    width = (4, 5, 12, 7, 8, 24)[seed % 6]
    body = Residual(size(0, 5), width, lambda channels: nn.RMSNorm(channels, eps=1e-6, elementwise_affine=False))
    return Example(worn(body), body.inputs())
