"""Fused attention as what it computes: product, mask, softmax, product.

For NPUs without an op of its own. A row of the mask that hides everything gives zeros, as PyTorch's fused op does.
Source: `torch.nn.functional.scaled_dot_product_attention`, the reference in its documentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.functional import scaled_dot_product_attention

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._ops import arguments, calls, constant, name_of, sizes
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "fused attention as product, softmax, product"
EXACTNESS = "exact"
STAGE, RANK = "shapes", 7
aten = torch.ops.aten


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every fused attention without dropout."""
    for node in calls(model, "scaled_dot_product_attention"):
        given = arguments(node)
        if given["dropout_p"]:
            yield skipped(node, "it drops weights at random")
        elif any(sizes(given[name]) is None for name in ("query", "key", "value")):
            yield skipped(node, "its sizes are dynamic: fix them first with static_shapes")
        elif sizes(given["query"])[:-3] != sizes(given["key"])[:-3]:  # type: ignore[index]
            yield skipped(node, "its queries and keys have batches of different sizes")
        else:
            node.replace_all_uses_with(_attention(model, node, given))
            yield done(node)


def _attention(model: LayeredModule, node: Node, given: Any) -> Node:
    query, key, value = given["query"], given["key"], given["value"]
    shape, heads = list(sizes(query) or ()), (sizes(key) or ())[-3:-2]
    width = shape[-1]
    shared = len(shape) > 3 and heads and heads[0] != shape[-3]  # several heads of queries read one of keys
    scores_shape = [*shape[:-1], (sizes(key) or ())[-2]]
    if shared:
        query = model.op(aten.reshape.default, query, [*shape[:-3], heads[0], -1, width], at=node)
    turned = model.op(aten.transpose.int, key, -2, -1, at=node)
    scores = model.op(aten.matmul.default, query, turned, at=node)
    scale = 1 / math.sqrt(width) if given["scale"] is None else given["scale"]
    scores = model.op(aten.mul.Tensor, scores, scale, at=node)
    if shared:
        scores = model.op(aten.reshape.default, scores, scores_shape, at=node)
    weights = _weights(model, node, scores, _mask(model, node, given, scores_shape))
    if shared:
        weights = model.op(aten.reshape.default, weights, [*shape[:-3], heads[0], -1, scores_shape[-1]], at=node)
    result = model.op(aten.matmul.default, weights, value, at=node)
    return model.op(aten.reshape.default, result, list(sizes(node) or ()), at=node) if shared else result


def _mask(model: LayeredModule, node: Node, given: Any, scores: list[int]) -> Node | None:
    if not given["is_causal"]:
        return given["attn_mask"]  # type: ignore[no-any-return]
    seen = torch.ones(scores[-2:], dtype=torch.bool).tril()
    return model.weight(f"constants.{node.name}_causal", seen, at=node)


def _weights(model: LayeredModule, node: Node, scores: Node, mask: Node | None) -> Node:
    """Softmax of the masked scores; zeros in rows where the mask may hide everything."""
    if mask is None:
        return model.op(aten.softmax.int, scores, -1, at=node)
    least = torch.finfo(scores.meta["val"].dtype).min
    known, is_boolean = constant(model, mask), mask.meta["val"].dtype == torch.bool
    if known is not None and is_boolean:
        added = torch.zeros(known.shape, dtype=scores.meta["val"].dtype).masked_fill(~known, least)
        scores = model.op(aten.add.Tensor, scores, model.weight(f"constants.{node.name}_mask", added, at=node), at=node)
        hides_all = not bool(known.any(-1).all())
    elif is_boolean:
        scores = model.op(aten.where.ScalarOther, mask, scores, least, at=node)
        hides_all = True
    else:
        scores = model.op(aten.add.Tensor, scores, mask, at=node)
        hides_all = not _is_finite(model, mask)
        if hides_all:
            scores = model.op(aten.clamp_min.default, scores, least, at=node)
    weights = model.op(aten.softmax.int, scores, -1, at=node)
    if hides_all:
        seen = mask if is_boolean else model.op(aten.ne.Scalar, mask, -math.inf, at=node)
        weights = model.op(aten.where.ScalarOther, seen, weights, 0.0, at=node)
    return weights


def _is_finite(model: LayeredModule, mask: Node) -> bool:
    """Whether no element of a mask can be minus infinity, as far as can be told without running it."""
    if (known := constant(model, mask)) is not None:
        return bool(torch.isfinite(known).all())
    return name_of(mask) == "where" and all(_is_finite_choice(model, each) for each in mask.args[1:])


def _is_finite_choice(model: LayeredModule, choice: Any) -> bool:
    if isinstance(choice, Node):
        known = constant(model, choice)
        return known is not None and bool(torch.isfinite(known).all())
    return math.isfinite(choice)


class _Attention(nn.Module):
    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, q: Tensor, k: Tensor, v: Tensor, shown: Tensor) -> Tensor:
        kinds: list[dict[str, Any]] = [
            {"attn_mask": shown},
            {"attn_mask": torch.zeros(shown.shape).masked_fill(~shown, -math.inf)},
            {"attn_mask": torch.where(shown, 0.0, -5.0)},
            {"is_causal": True},
            {"scale": 0.3, "enable_gqa": True},
        ]
        return scaled_dot_product_attention(q, k, v, **kinds[self.kind])


@seeded
def example(seed: int) -> Example:
    """Masks of three kinds, with rows that hide everything; causal; keys that several heads share."""
    kind = seed % 5
    batch, heads, queries, keys, width = size(1, 2), size(1, 3), size(1, 5), size(1, 5), size(1, 6)
    shape = (batch, heads, keys, width)
    inputs = {
        "q": torch.randn(batch, heads * (2 if kind == 4 else 1), queries, width),
        "k": torch.randn(shape),
        "v": torch.randn(shape),
        "shown": torch.rand(batch, 1, queries, keys) > 0.4,
    }
    inputs["shown"][:, :, 0, 0] = True  # an answer of zeros everywhere would prove nothing
    return Example(_Attention(kind), inputs)
