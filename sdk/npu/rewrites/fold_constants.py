"""What depends on no input computed once and stored: attention masks, positions, transposed weights.

Left in the graph, these are integer and Boolean ops that NPUs hand to the CPU.
Source: Vela 5.2.0, `vela --supported-ops-report`, which has no such ops; converters fold what they see through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from edgekit.layered import LayeredModule
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "what depends on no input stored as a constant"
EXACTNESS = "bit-equal"
STAGE, RANK = "shapes", 1
LARGEST = 1 << 24  # elements; beyond that the file would grow more than the op costs


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """The last op of every part of the graph that no input reaches."""
    fixed = _fixed(model)
    values: dict[Node, Tensor] = {}
    for node in [each for each in fixed if each.op == "call_function"]:
        value = node.meta["val"]
        if all(user in fixed for user in node.users) or not isinstance(value, Tensor):
            continue
        if value.numel() > LARGEST:
            yield skipped(node, f"it would store {value.numel():,} elements")
            continue
        at = next(user for user in model.graph.nodes if user in node.users and user not in fixed)
        with torch.no_grad():
            folded = _compute(model, node, values).detach().clone()
        stored = model.weight(_path(model, node), folded, at=at)
        node.replace_all_uses_with(stored, delete_user_cb=lambda user: user not in fixed)
        yield done(node)


def _fixed(model: LayeredModule) -> dict[Node, None]:
    """The nodes whose results are the same in every call."""
    found: dict[Node, None] = {}
    for node in model.graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function"
            and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
            and all(source in found for source in node.all_input_nodes)
            and not any(isinstance(arg, torch.SymInt) for arg in node.args)
        ):
            found[node] = None
    return found


def _compute(model: LayeredModule, node: Node, values: dict[Node, Tensor]) -> Tensor:
    """The node's value, and all it depends on, each once."""
    runner = Interpreter(model, graph=model.graph)
    runner.env = values
    pending = [node]
    while pending:
        missing = [source for source in pending[-1].all_input_nodes if source not in values]
        if missing:
            pending.extend(missing)
        else:
            each = pending.pop()
            values[each] = runner.run_node(each)
    return values[node]


def _path(model: LayeredModule, node: Node) -> str:
    taken = dict(model.named_buffers()) | dict(model.named_parameters()) | dict(model.named_modules())
    path, count = f"constants.{node.name}", 0
    while path in taken:
        count += 1
        path = f"constants.{node.name}_{count}"
    return path


class _Positions(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1])
        mask = torch.where(steps[:, None] >= steps[None], 0.0, -2.0)
        return (x @ self.scale.exp().diag()).transpose(1, 2) @ mask + steps


@seeded
def example(seed: int) -> Example:
    """A causal mask, the positions that it is made of, and a matrix made of a parameter."""
    batch, length, channels = size(1, 3), size(2, 7), size(1, 5)
    return Example(_Positions(channels), {"x": torch.randn(batch, length, channels)})
