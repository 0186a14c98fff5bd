"""The range of every tensor of a model on real inputs, and what each scheme's grid makes of it.

Ratios are those of one op alone: its inputs are exact, its weights are rounded, and so is its result. So a tensor that
does not quantise is named itself, and not all that comes after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node, map_arg

from edgekit.graph import module_path, source_line
from edgekit.layered import LayeredModule
from edgekit.model import Model
from edgekit.npu.numbers._replay import Replay, Watched
from edgekit.npu.numbers._rounding import FUSED, channel_axes, rounded_nodes
from edgekit.npu.numbers.noise import Powers, Sqnr
from edgekit.npu.numbers.quantsim import observe, rounded_weights, tensors
from edgekit.npu.numbers.scheme import SCHEMES, Grid, Scheme, activation_grid, scheme
from edgekit.processing import Arrays
from edgekit.types import Value


class TensorRange(Value, frozen=True, kw_only=True):
    """What values a tensor has over the samples, and the ratios that its op alone reaches in each scheme."""

    name: str  # `module.path/op`, with #2 where a module calls the op again; of inputs and constants, their own
    module: str
    op: str  # "conv2d", "input" or "constant"
    source: str | None  # file and line
    min: float  # of the finite values; 0 where there are none
    max: float
    kurtosis: float | None  # 3 for a normal distribution; None: nothing varies
    max_over_std: float | None  # the largest magnitude in standard deviations
    not_finite: int  # elements that are NaN or infinite
    sqnr: dict[str, Sqnr]  # by scheme; none where no value is finite


def tensor_ranges(
    model: Model | LayeredModule,
    samples: Sequence[Arrays],
    schemes: Sequence[str] = tuple(SCHEMES),
    *,
    fused: Collection[str] = FUSED,
) -> tuple[TensorRange, ...]:
    """One entry for every tensor that a quantised runtime writes, in execution order.

    `fused` names the activations that a product computes before it rounds. Raises `InvalidInput` without samples.
    """
    chosen = [scheme(name) for name in schemes]
    replay = Replay.of(model)
    nodes = rounded_nodes(replay, fused)
    moments = observe(replay, samples, nodes)
    grids = {
        each: {n: activation_grid(m.low, m.high, each.activation_bits) for n, m in moments.items() if m.count}
        for each in chosen
    }
    powers = _Twins.powers(replay, samples, grids)
    names = tensor_names(replay, nodes)
    return tuple(
        TensorRange(
            name=names[node],
            module=module_path(node),
            op=_op(replay, node),
            source=source_line(node),
            min=moments[node].low,
            max=moments[node].high,
            kurtosis=moments[node].kurtosis,
            max_over_std=moments[node].max_over_std,
            not_finite=moments[node].not_finite,
            sqnr={each.name: powers[each, node].sqnr() for each in chosen if (each, node) in powers},
        )
        for node in nodes
    )


class _Twins(Watched):
    """Runs the exact model, and beside each op its twin with rounded weights on the same exact inputs."""

    def __init__(self, replay: Replay, grids: Mapping[Scheme, Mapping[Node, Grid]]) -> None:
        super().__init__(replay, lambda node, value: value, {})
        self.grids = grids
        self.axes = channel_axes(replay)
        self.rounded = {bits: rounded_weights(replay, bits) for bits in {each.weight_bits for each in grids}}
        self.inside: dict[int, dict[Node, Any]] = {}  # by weight bits: results that no runtime writes
        self.found: dict[tuple[Scheme, Node], Powers] = {}

    @classmethod
    def powers(
        cls, replay: Replay, samples: Sequence[Arrays], grids: Mapping[Scheme, Mapping[Node, Grid]]
    ) -> dict[tuple[Scheme, Node], Powers]:
        """Signal and noise of every tensor that has a grid, over all samples."""
        twins = cls(replay, grids)
        with torch.no_grad():
            for feeds in tensors(samples):
                twins.inside = {bits: {} for bits in twins.rounded}
                twins.run(*(feeds[name] for name in replay.root.inputs))
        return twins.found

    def run_node(self, n: Node) -> Any:
        """The exact value; its twins' errors are added up, or the twins handed on inside of a product."""
        exact = super().run_node(n)
        for bits, weights in self.rounded.items():
            twin = self._twin(n, exact, bits, weights)
            written = [each for each in self.grids if each.weight_bits == bits and n in self.grids[each]]
            for each in written:
                errors = Powers.of(exact, self.grids[each][n].round(twin), self.axes.get(n))
                self.found[each, n] = self.found[each, n] + errors if (each, n) in self.found else errors
            if not written and twin is not exact:
                self.inside[bits][n] = twin
        return exact

    def _twin(self, node: Node, exact: Any, bits: int, weights: Mapping[Node, Tensor]) -> Any:
        inside = self.inside[bits]
        if node not in weights and not any(source in inside for source in node.all_input_nodes):
            return exact
        args, options = map_arg((node.args, node.kwargs), lambda each: inside.get(each, self.env[each]))
        return self.compute(node, args, options, weights.get(node))


def _op(replay: Replay, node: Node) -> str:
    return {"placeholder": "input", "get_attr": "constant"}.get(node.op) or replay.op(node) or str(node.target)


def tensor_names(replay: Replay, nodes: Sequence[Node]) -> dict[Node, str]:
    """`module.path/op` of each node, with #2 where a module calls the op again; of inputs and constants, their own."""
    names, seen = dict[Node, str](), Counter[str]()
    for node in nodes:
        own = node.op in ("placeholder", "get_attr")
        plain = str(node.target) if own else f"{module_path(node)}/{_op(replay, node)}"
        seen[plain] += 1
        names[node] = plain if seen[plain] == 1 else f"{plain}#{seen[plain]}"
    return names
