"""Which ops need more bits: the fewest that bring a model's answers above a bar, by their sensitivity.

An op's scheme sets the bits of its weights and of the tensor that it writes; what it reads keeps the bits of its
writer, and a runtime converts between the two. Ops are widened in the order of the harm that each does alone.
Source: Pandey et al., A Practical Mixed Precision Algorithm for Post-Training Quantization (arXiv 2302.05397):
sensitivity by the SQNR of the outputs with one op rounded, then a greedy walk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from edgekit.compression import Progress, silent
from edgekit.errors import InvalidInput
from edgekit.layered import LayeredModule
from edgekit.model import Model
from edgekit.npu.numbers._replay import Replay
from edgekit.npu.numbers._rounding import FUSED, rounded_nodes, weight_axes
from edgekit.npu.numbers.moments import Moments
from edgekit.npu.numbers.quantsim import Simulated, answers, observe, rounded_weights, sqnr_to
from edgekit.npu.numbers.ranges import tensor_names
from edgekit.npu.numbers.scheme import Scheme, activation_grid, scheme
from edgekit.processing import Arrays
from edgekit.types import Value


class OpBits(Value, frozen=True, kw_only=True):
    """The scheme chosen for one op."""

    name: str  # as in `TensorRange`
    scheme: str
    alone_db: float  # SQNR of the model where only this op is rounded, in the first scheme


class BitsPoint(Value, frozen=True, kw_only=True):
    """The model with all ops in one scheme, or after one more op was widened."""

    op: str | None  # None: all ops are in one scheme
    scheme: str
    total_db: float


class Bits(Value, frozen=True, kw_only=True):
    """A scheme for every op, and how the model's SQNR grew on the way."""

    ops: tuple[OpBits, ...]  # in execution order
    curve: tuple[BitsPoint, ...]
    min_db: float
    met: bool  # False: the bar is not reached with all ops in the last scheme

    @property
    def total_db(self) -> float:
        """The SQNR of the model as chosen."""
        return self.curve[-1].total_db


def choose_bits(
    model: Model | LayeredModule,
    samples: Sequence[Arrays],
    schemes: Sequence[str] = ("w8a8", "w8a16"),
    min_db: float = 40.0,
    *,
    fused: Collection[str] = FUSED,
    progress: Progress = silent,
) -> Bits:
    """Start in the first scheme and widen op after op until the outputs reach `min_db` on the samples.

    Where all ops in the last scheme do not reach it, they all get that one, and nothing is walked. `schemes` go from
    the narrowest to the widest. Raises `InvalidInput` for fewer than two, or without samples.
    """
    levels = [scheme(name) for name in schemes]
    if len(levels) < 2:
        raise InvalidInput(f"bits are chosen among two schemes or more, not {len(levels)}: for example w8a8 and w8a16")
    mixed = _Mixed.of(model, samples, fused)
    chosen = dict.fromkeys(mixed.names, levels[0])
    curve = [BitsPoint(op=None, scheme=levels[0].name, total_db=mixed.sqnr(chosen))]
    alone = {}
    for at, node in enumerate(mixed.names, 1):
        progress(f"round op {at} of {len(mixed.names)} alone")
        alone[node] = mixed.sqnr({node: levels[0]})
    widest = dict.fromkeys(mixed.names, levels[-1])
    most_db = mixed.sqnr(widest)
    if curve[0].total_db < min_db and most_db < min_db:
        chosen = widest
        curve.append(BitsPoint(op=None, scheme=levels[-1].name, total_db=most_db))
    for level in levels[1:] if len(curve) == 1 else ():
        for node in sorted(mixed.names, key=alone.__getitem__):
            if curve[-1].total_db >= min_db:
                break
            chosen[node] = level
            curve.append(BitsPoint(op=mixed.names[node], scheme=level.name, total_db=mixed.sqnr(chosen)))
            progress(f"{len(curve) - 1} steps to more bits, {curve[-1].total_db:.1f} dB")
    return Bits(
        ops=tuple(OpBits(name=n, scheme=chosen[node].name, alone_db=alone[node]) for node, n in mixed.names.items()),
        curve=tuple(curve),
        min_db=min_db,
        met=curve[-1].total_db >= min_db,
    )


@dataclass(frozen=True, eq=False)
class _Mixed:
    """A traced model whose ops may each have a scheme of their own, or none."""

    replay: Replay
    names: Mapping[Node, str]  # of the nodes that are rounded
    moments: Mapping[Node, Moments]
    owners: Mapping[Node, Collection[Node]]  # node that holds a weight -> the rounded nodes that it serves
    samples: Sequence[Arrays]
    exact: Sequence[Mapping[str, Tensor]]  # the float model's answers
    weights: dict[int, dict[Node, Tensor]]  # by bits, filled when needed

    @classmethod
    def of(cls, model: Model | LayeredModule, samples: Sequence[Arrays], fused: Collection[str]) -> _Mixed:
        replay = Replay.of(model)
        moments = observe(replay, samples, rounded_nodes(replay, fused))
        nodes = [node for node, seen in moments.items() if seen.count]
        owners = {node: _written(node, set(nodes)) for node in weight_axes(replay)}
        return cls(replay, tensor_names(replay, nodes), moments, owners, samples, answers(replay.root, samples), {})

    def sqnr(self, chosen: Mapping[Node, Scheme]) -> float:
        """Of the outputs, with these ops rounded and the others exact."""
        grids = {
            node: activation_grid(self.moments[node].low, self.moments[node].high, each.activation_bits)
            for node, each in chosen.items()
        }
        weights = {}
        for node, owners in self.owners.items():
            if bits := max((chosen[owner].weight_bits for owner in owners if owner in chosen), default=0):
                if bits not in self.weights:
                    self.weights[bits] = rounded_weights(self.replay, bits)
                weights[node] = self.weights[bits][node]
        return sqnr_to(self.exact, Simulated(self.replay, grids, weights), self.samples).total_db


def _written(node: Node, rounded: Collection[Node]) -> set[Node]:
    """The rounded tensors that come next after a node: those of the ops that its weight belongs to."""
    if node.op != "get_attr" and node in rounded:
        return {node}
    return set[Node]().union(*(_written(user, rounded) for user in node.users))
