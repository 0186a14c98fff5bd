"""Rewrites of a model for an NPU: the contract of each, the order they go in, and the proof that nothing changed.

A rewrite is a module in `sdk/npu/rewrites/`; its file name is its public name. The NPU's rules say which it wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_aggregate

from edgekit import registry
from edgekit.compression import Progress, silent
from edgekit.errors import EdgekitError
from edgekit.graph import capture, place_of
from edgekit.layered import LayeredModule, copied, layered
from edgekit.model import Model, name_outputs
from edgekit.types import Value

if TYPE_CHECKING:
    from edgekit.npu.rules import NpuRules

REWRITES = "edgekit.npu.rewrites"
Exactness = Literal["bit-equal", "exact"]
Stage = Literal["shapes", "folds", "layers", "ranges", "channels"]
# Shapes first, since all else matches static ones; folds before layers change kind; channels last: others count them.
STAGES: tuple[Stage, ...] = ("shapes", "folds", "layers", "ranges", "channels")
ERROR_LIMIT = 1e-12  # float64, relative: far above rounding, far below any mistake


class Outcome(Value, frozen=True, kw_only=True):
    """What became of one place that a rewrite looked at; `reason` says why it was left as it was."""

    place: str  # "encoder.layers.0.fc1 (model.py:41)"
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Example:
    """A random module on which a rewrite must act, and inputs for it."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic: tuple[str, ...] = ()  # sizes, as `edgekit.load` takes them


class Rewrite(Protocol):
    """What a module in `sdk/npu/rewrites/` offers."""

    TITLE: str  # "Linear layers as 1x1 convolutions"
    EXACTNESS: Exactness  # in float: to the bit, or but for rounding
    STAGE: Stage
    RANK: int  # place within the stage

    def apply(self, model: LayeredModule, rules: NpuRules) -> Iterator[Outcome]:
        """Edit the model in place. Yields an outcome for every place that looks like the pattern."""

    def example(self, seed: int) -> Example:
        """A module of random sizes on which it must act: its self-test."""


class RewriteRecord(Value, frozen=True, kw_only=True):
    """What one rewrite did to a model."""

    name: str
    title: str
    exactness: Exactness
    done: tuple[str, ...]  # places
    skipped: tuple[Outcome, ...] = ()
    error: float | None = (
        None  # float64: greatest of |after - before| / |before| over outputs; None where nothing was done
    )


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A model after its rewrites, and what each did. Without one that acted, the model is the one that was given."""

    model: Model
    log: tuple[RewriteRecord, ...]


def rewrite(
    model: Model, rules: NpuRules, *, only: Sequence[str] | None = None, progress: Progress = silent
) -> Rewritten:
    """Apply the rewrites that an NPU wants, or those in `only`, and check each in float64 on the example inputs.

    Raises `UnknownName` for a rewrite that does not exist, `UnsupportedModel` for a model that cannot be traced.
    """
    wanted = only if only is not None else [each.rewrite for each in rules.prefers]
    edited, log = layered(capture(model)), list[RewriteRecord]()
    for name in in_order(wanted):
        progress(f"rewrite: {name}")
        edited, record = apply_one(name, edited, rules, model.example)
        log.append(record)
    acted = any(record.done for record in log)
    return Rewritten(model=_rewritten(model, edited) if acted else model, log=tuple(log))


def _rewritten(model: Model, edited: LayeredModule) -> Model:
    """The model with another module, and the sizes that this one takes where those of the model were dynamic."""
    edited.free_batch()
    if not model.dynamic or edited.is_dynamic:
        return replace(model, module=edited)
    example = fitted(model.example, edited)
    with torch.no_grad():
        outputs = name_outputs(edited(**example))
    return replace(
        model,
        module=edited,
        example=example,
        inputs=tuple(msgspec.structs.replace(spec, shape=tuple(example[spec.name].shape)) for spec in model.inputs),
        outputs=tuple(msgspec.structs.replace(spec, shape=tuple(outputs[spec.name].shape)) for spec in model.outputs),
        dynamic=(),
    )


def in_order(names: Sequence[str]) -> list[str]:
    """The names in the order in which they must be applied."""
    found: dict[str, Rewrite] = {name: load(name) for name in names}
    return sorted(found, key=lambda name: (STAGES.index(found[name].STAGE), found[name].RANK))


def load(name: str) -> Rewrite:
    """A rewrite by its name. Raises `UnknownName`."""
    found: Rewrite = registry.load(REWRITES, name)
    return found


def apply_one(
    name: str, model: LayeredModule, rules: NpuRules, example: Mapping[str, Tensor]
) -> tuple[LayeredModule, RewriteRecord]:
    """A copy of the model after one rewrite; the model itself where it did nothing.

    Raises `EdgekitError` when the outputs changed: that is a mistake of the rewrite, and nobody's model should have it.
    """
    step, edited = load(name), copied(model)
    outcomes = tuple(step.apply(edited, rules))
    done = tuple(each.place for each in outcomes if each.reason is None)
    error = None
    if done:
        edited.tidy()
        error = proof(step, model, rules, example)
        if not error <= ERROR_LIMIT:
            raise EdgekitError(
                f"rewrite '{name}' changed what the model computes by {error:.1e} and was not applied: leave it out, "
                f"and report this model's part at {done[0]}"
            )
    skipped = tuple(each for each in outcomes if each.reason is not None)
    record = RewriteRecord(
        name=name, title=step.TITLE, exactness=step.EXACTNESS, done=done, skipped=skipped, error=error
    )
    return (edited if done else model), record


def done(node: Node) -> Outcome:
    """The outcome of a place that was rewritten."""
    return Outcome(place=place_of(node))


def skipped(node: Node, reason: str) -> Outcome:
    """The outcome of a place that was left as it was."""
    return Outcome(place=place_of(node), reason=reason)


def proof(step: Rewrite, model: LayeredModule, rules: NpuRules, example: Mapping[str, Tensor]) -> float:
    """What a rewrite changes where all is computed in float64, the weights that it makes too."""
    with _default_float64():
        before = in_float64(model)
        after = copied(before)
        for _ in step.apply(after, rules):
            pass
        after.tidy()
        return change(before, after, {name: _widened(tensor) for name, tensor in fitted(example, after).items()})


def fitted(example: Mapping[str, Tensor], model: LayeredModule) -> dict[str, Tensor]:
    """The example cut to the sizes that the model takes: a rewrite may have fixed those that were dynamic."""
    found = dict(example)
    for name, node in zip(model.inputs, model.graph.find_nodes(op="placeholder"), strict=True):
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, int) and size < found[name].shape[axis]:
                found[name] = found[name].narrow(axis, 0, size).contiguous()
    return found


@contextmanager
def _default_float64() -> Iterator[None]:
    """Numbers whose dtype nothing says are float64 meanwhile, as `torch.where(mask, 0.0, 1.0)`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def change(before: nn.Module, after: nn.Module, example: Mapping[str, Tensor]) -> float:
    """|after - before| / |before|, the greatest over outputs."""
    with torch.no_grad():
        ours, theirs = (name_outputs(model(**example)) for model in (after, before))
    return max(_relative(ours[name].double(), theirs[name].double()) for name in theirs)


def _relative(found: Tensor, right: Tensor) -> float:
    if found.shape != right.shape:
        return float("inf")
    return float((found - right).norm() / right.norm().clamp(min=torch.finfo(torch.float64).tiny))


def in_float64(model: LayeredModule) -> LayeredModule:
    """A copy that computes in float64 wherever the model computes in float32."""
    wide = copied(model).double()
    for node in wide.graph.nodes:
        node.args = map_aggregate(node.args, _widened)
        node.kwargs = map_aggregate(node.kwargs, _widened)
        if node.op == "placeholder":
            node.meta["val"] = _widened(node.meta["val"])
    wide.refresh()
    return wide


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return torch.float64 if value is torch.float32 else value
