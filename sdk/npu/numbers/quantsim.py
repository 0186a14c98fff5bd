"""A model in the integers of a scheme, simulated in float: what rounding weights and activations does to its answers.

Every tensor that a quantised runtime writes is rounded to a grid whose range is that of the samples; every matrix and
kernel to a grid for each output channel (`numbers.scheme`). Sums are exact, as in accumulators of 32 or more bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgekit.errors import InvalidInput
from edgekit.layered import LayeredModule
from edgekit.model import Model, name_outputs
from edgekit.npu.numbers._replay import Replay
from edgekit.npu.numbers._rounding import FUSED, rounded_nodes, weight_axes
from edgekit.npu.numbers.moments import Moments
from edgekit.npu.numbers.noise import Powers
from edgekit.npu.numbers.scheme import Grid, Scheme, activation_grid, rounded_weight
from edgekit.processing import Arrays
from edgekit.types import Value


class ModelSqnr(Value, frozen=True, kw_only=True):
    """Of the outputs, in dB: the output that is worst as a whole, and the worst channel of any."""

    total_db: float
    worst_channel_db: float


class Simulated(nn.Module):
    """A traced model whose rounded values are replaced on their way. Takes and returns what the model does."""

    def __init__(self, replay: Replay, grids: Mapping[Node, Grid], weights: Mapping[Node, Tensor]) -> None:
        super().__init__()
        self.replay, self.grids, self.weights = replay, grids, weights

    def forward(self, **inputs: Tensor) -> Any:
        """Run op by op and round every value that has a grid."""
        return self.replay.run(inputs, self._rounded, self.weights)

    def _rounded(self, node: Node, value: Any) -> Any:
        grid = self.grids.get(node)
        return grid.round(value) if grid else value


def simulate(
    model: Model | LayeredModule, samples: Sequence[Arrays], scheme: Scheme, *, fused: Collection[str] = FUSED
) -> Simulated:
    """The model as the scheme computes it, with ranges from `samples`; the model is left as it was.

    `fused` names the activations that a product computes before it rounds. Raises `InvalidInput` without samples.
    """
    replay = Replay.of(model)
    found = observe(replay, samples, rounded_nodes(replay, fused))
    grids = {node: activation_grid(m.low, m.high, scheme.activation_bits) for node, m in found.items() if m.count}
    return Simulated(replay, grids, rounded_weights(replay, scheme.weight_bits))


def model_sqnr(
    model: Model | nn.Module, simulated: nn.Module, samples: Sequence[Arrays], *, outputs: Collection[str] = ()
) -> ModelSqnr:
    """How far the simulated model's answers are off, over all samples; of `outputs`, or of every float output.

    Channels lie along axis 1 of outputs with four or more dimensions, else along the last.
    """
    return sqnr_to(answers(model, samples), simulated, samples, outputs=outputs)


def answers(model: Model | nn.Module, samples: Sequence[Arrays]) -> list[dict[str, Tensor]]:
    """What a model says to every sample, by the names of its outputs."""
    module = model.module if isinstance(model, Model) else model
    with torch.no_grad():
        return [name_outputs(module(**feeds)) for feeds in tensors(samples)]


def sqnr_to(
    exact: Sequence[Mapping[str, Tensor]],
    simulated: nn.Module,
    samples: Sequence[Arrays],
    *,
    outputs: Collection[str] = (),
) -> ModelSqnr:
    """`model_sqnr` where the exact answers are known."""
    powers: dict[str, Powers] = {}
    for wanted, found in zip(exact, answers(simulated, samples), strict=True):
        for name, tensor in wanted.items():
            if tensor.is_floating_point() and (not outputs or name in outputs):
                axis = (1 if tensor.dim() >= 4 else -1) if tensor.dim() else None
                seen = Powers.of(tensor, found[name], axis)
                powers[name] = powers[name] + seen if name in powers else seen
    if not powers:
        raise InvalidInput(f"no float output is called {', '.join(outputs)}" if outputs else "no output is float")
    ratios = [each.sqnr() for each in powers.values()]
    return ModelSqnr(
        total_db=min(each.total_db for each in ratios), worst_channel_db=min(each.worst_db for each in ratios)
    )


def observe(replay: Replay, samples: Sequence[Arrays], nodes: Sequence[Node]) -> dict[Node, Moments]:
    """What values these nodes have over the samples."""
    wanted, found = set(nodes), dict[Node, Moments]()

    def see(node: Node, value: Any) -> Any:
        if node in wanted:
            seen = Moments.of(value)
            found[node] = found[node] + seen if node in found else seen
        return value

    for feeds in tensors(samples):
        replay.run(feeds, see)
    return found


def rounded_weights(replay: Replay, bits: int) -> dict[Node, Tensor]:
    """The rounded matrix or kernel of every node that holds one."""
    return {node: rounded_weight(weight_of(replay, node), bits, axis) for node, axis in weight_axes(replay).items()}


def weight_of(replay: Replay, node: Node) -> Tensor:
    """The matrix or kernel of a layer that is called, or of a constant that is read."""
    root, path = replay.root, str(node.target)
    name = f"{path}.weight" if node.op == "call_module" else path
    parent, _, last = name.rpartition(".")
    tensor = getattr(root.get_submodule(parent), last)
    if not isinstance(tensor, Tensor):
        raise InvalidInput(f"'{path}' holds no weight")
    return tensor


def tensors(samples: Sequence[Arrays]) -> list[dict[str, Tensor]]:
    """Samples as a module takes them. Raises `InvalidInput` without any."""
    if not samples:
        raise InvalidInput("ranges come from real inputs and there are no samples: give at least one")
    return [{name: torch.from_numpy(array) for name, array in sample.items()} for sample in samples]
