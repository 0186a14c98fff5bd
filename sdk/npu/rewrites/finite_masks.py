"""Masks of minus infinity, or of the least float, as finite ones that a grid of integers can hold.

Behind a softmax both are zero: exp(-255) is 10^-111. A tensor with -inf or -3e38 in it has no grid of 8 or 16 bits.
Where every element of a row is masked the two differ (NaN or a uniform row, against the softmax of the logits alone):
masks must be constants that leave something in every row. One that depends on inputs is left as it is here: the
adaptation `finite_input_masks` takes it where that is allowed.
Source: ExecuTorch, backends/qualcomm/_passes, ReduceDynamicRange, for -255; Apple, ml-ane-transformers, for -1e4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from edgekit.cost.kernels import op_name
from edgekit.layered import LayeredModule, shape_of, stored
from edgekit.npu.auditing.far_numbers import FAR, FILLS, MAKES, MOVES
from edgekit.npu.channel_maps import named
from edgekit.npu.channels import argument
from edgekit.npu.rewrites._examples import seeded, size
from edgekit.npu.rewriting import Example, Outcome, done, skipped

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

TITLE = "masks of minus infinity as finite ones"
EXACTNESS = "exact"
STAGE, RANK = "shapes", 8
INTEGER, FLOAT = -255.0, -1e4  # what takes the place of minus infinity
BETWEEN = (*FILLS, "add", *MOVES)


def apply(model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
    """Every softmax over masked logits, and every fused attention with such a mask."""
    floor = FLOAT if rules.dtypes[0].startswith("float") else INTEGER
    constants, stores = _Constants(model), dict[Node, Node]()
    for node, masked in _all_masked(model, constants):
        axis = argument(node, 1, "dim") if "softmax" in op_name(node) else -1
        if reason := masked.why_not(node, axis, constants):
            yield skipped(node, reason)
            continue
        masked.make_finite(model, node, floor, constants, stores)
        yield done(node)


def input_masks(model: LayeredModule) -> Iterator[tuple[Node, str | None]]:
    """The ops that put minus infinity where the model's inputs say so, and why each must stay as it is."""
    constants = _Constants(model)
    readers = dict(_all_masked(model, constants))
    inside = set(readers).union(*(masked.between for masked in readers.values()))
    live = {node for masked in readers.values() for node in masked.live(constants)}
    for node in [node for node in model.graph.nodes if node in live]:
        other = next((user for user in node.users if user not in inside), None)
        own = _far_number(node) or any(map(constants.is_far, node.all_input_nodes))
        reason = None if own else "another op brings minus infinity to it"
        yield node, f"{named(other)} reads what it fills" if other else reason


def make_finite(model: LayeredModule, node: Node, floor: float) -> None:
    """Another number in one op that masks, or another constant."""
    node.args = tuple(floor if _is_far(each) else each for each in node.args)
    constants = _Constants(model)
    for source in [each for each in node.all_input_nodes if constants.is_far(each)]:
        value = constants.value(source).clamp(min=floor)
        node.replace_input_with(source, model.weight(f"{node.name}_finite", value, at=node))


def _all_masked(model: LayeredModule, constants: _Constants) -> Iterator[tuple[Node, _Masked]]:
    """Every softmax or fused attention over masked logits."""
    for node in list(model.graph.nodes):
        logits = _logits(node)
        if logits is not None and (masked := _Masked.of(logits, constants)).masks:
            yield node, masked


def _logits(node: Node) -> Node | None:
    """What a softmax reads, or the mask of a fused attention."""
    name = op_name(node) if node.op == "call_function" else ""
    if name in ("softmax", "_softmax"):
        return node.all_input_nodes[0]
    mask = argument(node, 3, "attn_mask") if name == "scaled_dot_product_attention" else None
    return mask if isinstance(mask, Node) and mask.meta["val"].is_floating_point() else None


class _Constants:
    """The values of nodes that depend on no input."""

    def __init__(self, model: LayeredModule) -> None:
        self.model, self.values = model, dict[Node, Any]()
        self.known = set[Node]()
        for node in model.graph.nodes:
            pure = node.op == "call_function" and torch.Tag.nondeterministic_seeded not in getattr(
                node.target, "tags", ()
            )
            if node.op == "get_attr" or (pure and self.known.issuperset(node.all_input_nodes)):
                self.known.add(node)

    def value(self, node: Node) -> Any:
        """What a constant node computes."""
        if node not in self.values:
            self.values[node] = stored(self.model, str(node.target)) if node.op == "get_attr" else run(node, self.value)
        return self.values[node]

    def is_far(self, node: Node) -> bool:
        """Whether some of a constant's elements mask."""
        if node not in self.known or not isinstance(value := self.value(node), Tensor):
            return False
        return value.is_floating_point() and bool((value <= -FAR).any())


def run(node: Node, value: Any) -> Any:
    """An op on other values; `value` gives that of each node it reads."""
    args, options = map_arg(node.args, value), map_arg(node.kwargs, value)
    return node.target(*args, **options)  # type: ignore[operator]


@dataclass(frozen=True, eq=False)
class _Masked:
    """The ops between logits as they are computed and the softmax that reads them."""

    root: Node
    between: frozenset[Node]
    masks: tuple[Node, ...]  # fills, constants, and products with a far number

    @classmethod
    def of(cls, root: Node, constants: _Constants) -> _Masked:
        between, masks, todo = set[Node](), list[Node](), [root]
        while todo:
            node = todo.pop()
            if node in between:
                continue
            if _far_number(node) or constants.is_far(node):
                masks.append(node)
            if node not in constants.known and op_name(node) in BETWEEN and node.op == "call_function":
                between.add(node)
                todo += node.all_input_nodes
        return cls(root, frozenset(between), tuple(dict.fromkeys(masks)))

    def live(self, constants: _Constants) -> list[Node]:
        """The ops that mask where an input says so: fills whose condition it decides, and products with it."""
        fills = [node for node in self.between if op_name(node) in FILLS and self._holds_mask(node)]
        made = [mask for mask in self.masks if mask not in constants.known and op_name(mask) not in FILLS]
        return made + [node for node in fills if _condition(node) not in constants.known]

    def _holds_mask(self, node: Node) -> bool:
        return node in self.masks or (node in self.between and any(map(self._holds_mask, node.all_input_nodes)))

    def why_not(self, reader: Node, axis: int, constants: _Constants) -> str | None:
        """Why these masks must stay; None: something is left in every row."""
        if live := self.live(constants):
            return (
                f"what {named(min(live))} masks depends on the model's inputs, and whole rows may be masked: "
                "--allow finite_input_masks takes those that are not"
            )
        for mask in set(self.masks) - constants.known:
            if other := next((user for user in mask.users if user not in self.between and user is not reader), None):
                return f"{named(other)} reads what {named(mask)} fills"
        left = self._masked_zeros(self.root, constants) > -FAR
        rows = left.any(dim=axis)
        if not rows.all():
            return f"{int((~rows).sum())} of {rows.numel()} rows are masked as a whole"
        return None

    def _masked_zeros(self, node: Node, constants: _Constants) -> Any:
        """The logits as if all were computed as zero."""
        if node in constants.known:
            return constants.value(node)
        if node in self.between:
            return run(node, lambda source: self._masked_zeros(source, constants))
        return torch.zeros(shape_of(node), dtype=node.meta["val"].dtype)

    def make_finite(self, model: LayeredModule, reader: Node, floor: float, constants: _Constants,
                    stores: dict[Node, Node]) -> None:  # fmt: skip
        """Other numbers in fills; other constants for what reads them here, stored once."""
        for mask in self.masks:
            if mask not in constants.known:
                mask.args = tuple(floor if _is_far(each) else each for each in mask.args)
                continue
            if mask not in stores:
                path = f"{mask.target if mask.op == 'get_attr' else mask.name}_finite"
                stores[mask] = model.weight(path, constants.value(mask).clamp(min=floor), at=mask)
            for user in [user for user in mask.users if user in self.between or user is reader]:
                user.replace_input_with(mask, stores[mask])


def _is_far(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= -FAR


def _far_number(node: Node) -> bool:
    return node.op == "call_function" and op_name(node) in MAKES and any(map(_is_far, node.args))


def _condition(fill: Node) -> Any:
    return fill.args[1 if op_name(fill) == "masked_fill" else 0]


@seeded
def example(seed: int) -> Example:
    """Causal and windowed attention, masked in each of the ways that models do it."""
    length, width = size(2, 6), size(1, 6)
    return Example(_Attention(seed % 5, length, width), {"input": torch.randn(2, length, width)})


class _Attention(nn.Module):
    mask: Tensor

    def __init__(self, way: int, length: int, width: int) -> None:
        super().__init__()
        self.way, self.queries = way, nn.Linear(width, width)
        mask = torch.full((length, length), -math.inf if way % 2 else torch.finfo(torch.float32).min).triu(1)
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        queries = self.queries(input)
        if self.way == 4:
            return nn.functional.scaled_dot_product_attention(queries, input, input, attn_mask=self.mask)
        logits = queries @ input.mT
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        if self.way == 0:
            logits = logits.masked_fill(later, -math.inf)
        elif self.way == 1:
            logits = logits + self.mask
        elif self.way == 2:
            logits = torch.where(later, torch.finfo(logits.dtype).min, logits)
        else:
            logits = (logits[:, None] + self.mask[None, None])[:, 0]
        answer: Tensor = logits.softmax(-1) @ input
        return answer
