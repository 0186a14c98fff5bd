"""What an adaptation is, and which of them an NPU asks for.

An adaptation is a module in `sdk/npu/adaptations/`; its file name is its public name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.fx import Node

from edgekit import registry
from edgekit.errors import unknown_name
from edgekit.layered import LayeredModule
from edgekit.npu.auditing.placement import FINITE_INPUT_MASKS
from edgekit.npu.rules import NpuRules

ADAPTATIONS = "edgekit.npu.adaptations"
Seen = Callable[[Node], Tensor]  # what a node gave for each sample to learn from: [samples, ...]


@dataclass(frozen=True, eq=False)
class Site:
    """One place where an adaptation can act."""

    node: Node  # the op that changes
    block: str  # the path of the module whose outputs must stay; "" for the whole model
    refused: str | None = None  # why it stays as it is


class Adaptation(Protocol):
    """What a module in `sdk/npu/adaptations/` offers."""

    TITLE: str  # "GELU by tanh"
    GROUP: str  # the word that allows it
    RANK: int  # adaptations of less rank go first

    def sites(self, model: LayeredModule, rules: NpuRules) -> Iterator[Site]:
        """Every place that looks like the pattern."""

    def apply(self, model: LayeredModule, site: Site, seen: Seen) -> None:
        """Change one place in the model itself. `seen` answers for the model as it is before."""


def groups() -> tuple[str, ...]:
    """The words that allow adaptations together."""
    return tuple(sorted({load(name).GROUP for name in registry.names(ADAPTATIONS)}))


def allowed(words: Sequence[str]) -> list[str]:
    """The adaptations that words allow, each a group or a public name, in the order in which they go."""
    names = registry.names(ADAPTATIONS)
    found = {name: load(name) for name in names}
    for word in words:
        if word not in names and word not in groups():
            raise unknown_name("adaptation or group of them", word, [*groups(), *names])
    chosen = [name for name, each in found.items() if name in words or each.GROUP in words]
    return sorted(chosen, key=lambda name: (found[name].RANK, name))


def asked_for(rules: NpuRules, name: str) -> bool:
    """Whether a rule of the NPU names the adaptation as what helps an op, or as a form that runs better."""
    if name == FINITE_INPUT_MASKS:
        return rules.largest_number is not None
    return rules.prefers_rewrite(name) is not None or any(rule.fix == name for rule in rules.ops)


def load(name: str) -> Adaptation:
    """An adaptation by its name. Raises `UnknownName`."""
    found: Adaptation = registry.load(ADAPTATIONS, name)
    return found
