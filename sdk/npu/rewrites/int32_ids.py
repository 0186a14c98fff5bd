"""Token ids and positions as int32 from where they enter: int64 is no type of any NPU.

The model's input stays int64; a cast follows it.
Source: ExecuTorch's Qualcomm backend, `I64toI32`; Vela 5.2.0 takes int8, uint8, int16 and int32 only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewrites._ops import constant, name_of
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "int64 ids as int32"
EXACTNESS = "bit-equal"
STAGE, RANK = "shapes", 3
aten = torch.ops.aten
TAKERS = {"eq", "ne", "ge", "gt", "le", "lt", "_to_copy", "to", "index"}  # whose result has the same dtype either way
INT32_MAX = 2**31 - 1


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every input and stored tensor of int64."""
    for node in list(model.graph.nodes):
        value = node.meta.get("val")
        if node.op not in ("placeholder", "get_attr") or not isinstance(value, Tensor) or value.dtype != torch.int64:
            continue
        takers = [user for user in node.users if _takes(model, user)]
        for user in node.users:
            if user not in takers:
                yield skipped(user, f"{name_of(user) or user.op} computes with them in int64")
        if not takers:
            continue
        tensor = constant(model, node)
        if tensor is not None and int(tensor.abs().max()) > INT32_MAX:
            yield skipped(takers[0], "its ids exceed int32")
            continue
        first = next(each for each in model.graph.nodes if each in takers)
        narrow = (
            model.op(aten._to_copy.default, node, at=first, dtype=torch.int32)
            if tensor is None
            else model.weight(f"{node.target}_int32", tensor.to(torch.int32), at=first)
        )
        for user in takers:
            user.replace_input_with(node, narrow)
            yield done(user)


def _takes(model: LayeredModule, user: Node) -> bool:
    if isinstance(model.layer_of(user), nn.Embedding):
        return True
    if name_of(user) in ("_to_copy", "to"):
        return bool(user.meta["val"].dtype != torch.int64)
    return name_of(user) in TAKERS and not any(isinstance(each, Node) for each in user.args[1:2])


class _Lookup(nn.Module):
    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(9, width)
        self.register_buffer("steps", torch.arange(9))

    def forward(self, ids: Tensor) -> Tensor:
        known = (ids > 0).unsqueeze(-1)
        return torch.mul(self.words(ids) + self.places(self.steps), known)


@seeded
def example(seed: int) -> Example:
    """Embeddings of words and of their places."""
    words, width = size(2, 20), size(1, 6)
    return Example(_Lookup(words, width), {"ids": torch.randint(words, (size(1, 3), 9))})
