"""LayerNorm as RMSNorm, with the mean taken out of every weight that writes to its input.

A LayerNorm subtracts the mean of all channels first. Where all that reads a residual stream are LayerNorms, what writes
it may as well write without a mean: `W' = (I - 11^T / C) W`, the same for biases, embeddings and positions.
Source: SliceGPT (arXiv 2401.15024), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.fx import Node

from edgekit.layered import LayeredModule, shape_of
from edgekit.npu.channel_maps import map_writers, named, why_not_writes
from edgekit.npu.channels import LINEAR, Stream, passage, stream
from edgekit.npu.norms import norm_of, without_mean
from edgekit.npu.products import Owners
from edgekit.npu.rewrites._examples import Residual, seeded, size, worn
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "LayerNorms as RMSNorms over centred writers"
EXACTNESS = "exact"
STAGE, RANK = "folds", 5


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every stream that a LayerNorm reads: all of its norms, or none."""
    owners, seen = Owners(model), set[Node]()
    for node in list(model.graph.nodes):
        norm = norm_of(model, node)
        if norm is None or norm.kind != "layer_norm" or node in seen:
            continue
        found = stream(norm.input, len(shape_of(node)) - 1, passage(LINEAR))
        reason = "its input has channels along two axes" if found is None else None
        norms = _norms(model, found) if found else [node]
        seen.update(norms)
        if found and (reason := _why_not(model, found, owners)) is None:
            ones = torch.ones(norm.channels, norm.channels, dtype=torch.float64)
            map_writers(model, found, torch.eye(norm.channels, dtype=torch.float64) - ones / norm.channels)
        for each in norms:
            yield skipped(each, reason) if reason else done(each)
            if reason is None and (layer_norm := norm_of(model, each)):
                without_mean(model, each, layer_norm)


def _norms(model: LayeredModule, found: Stream) -> list[Node]:
    norms = ((reader, norm_of(model, reader)) for _, reader in found.readers)
    return [reader for reader, norm in norms if norm and norm.kind == "layer_norm"]


def _why_not(model: LayeredModule, found: Stream, owners: Owners) -> str | None:
    for tensor, reader in found.readers:
        if reader.op == "output":
            return "the model returns its input"
        norm = norm_of(model, reader)
        if norm is None or norm.kind != "layer_norm":
            return f"{named(reader)} reads its input, and its mean with it"
        if found.axis[tensor] != len(shape_of(tensor)) - 1:
            return f"{named(reader)} normalises another axis of its input"
        if reason := owners.shared(reader):
            return reason
    return why_not_writes(model, found, owners)


@seeded
def example(seed: int) -> Example:
    """A residual stream over tokens or images, whose norms have factors or none."""
    body = Residual(seed, size(2, 9), lambda width: nn.LayerNorm(width, elementwise_affine=bool(seed % 4)))
    return Example(worn(body), body.inputs())
