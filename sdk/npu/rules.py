"""What an NPU asks of a model: one TOML file per architecture in `device_profiles/npus/`, every rule with its source.

Rules speak of aten ops, as a trace has them, and hold for the whole road from PyTorch to the NPU: where the converter
or the quantiser decides, the rule's note says so. What is not known is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from edgekit.errors import InvalidInput, unknown_name
from edgekit.npu.measures import MEASURES
from edgekit.profile import DeviceProfile, device_ids, load_shipped
from edgekit.types import DType, Value

SCHEMA = "edgekit.npu/1"
FILES = "edgekit.device_profiles.npus"
GENERAL = ("dtypes", "static_shapes", "batch_one", "max_rank", "largest_number", "layout", "channel_multiple",
           "align_bytes", "on_chip_bytes", "fused")  # fmt: skip


class OpRule(Value, frozen=True, kw_only=True):
    """When some ops run. Rules of one op are asked in the file's order: the first whose dtypes and limits hold decides.

    `fix` is the public name of a rewrite or an adaptation, or words, which have spaces.
    """

    ops: tuple[str, ...]  # aten names without overloads: "conv2d", "layer_norm"
    dtypes: tuple[DType, ...] = ()  # of activations on the NPU; empty: those of the NPU
    limits: dict[str, tuple[float, float]] = {}  # measure -> least and most, both allowed; `npu/measures.py` lists them
    refused: str | None = None  # why these ops do not run where the limits hold; None: they run
    fix: str | None = None
    source: str  # a key of the file's `sources`
    note: str | None = None


class Preference(Value, frozen=True, kw_only=True):
    """A form that runs better on this NPU, though another one runs too."""

    rewrite: str  # a public name: "linear_to_conv"
    source: str
    note: str | None = None


class NpuRules(Value, frozen=True, kw_only=True):
    """Everything that is known of what an NPU architecture runs. Sizes are in elements or bytes, as the name says."""

    schema: Literal["edgekit.npu/1"]
    id: str  # the file's name
    title: str
    sources: dict[str, str]
    evidence: dict[str, str]  # each of the fields below that is given -> a key of `sources`
    dtypes: tuple[DType, ...]  # of activations with native arithmetic; the first is what models are brought to
    static_shapes: bool = False  # every size is fixed when the model is compiled
    batch_one: bool = False  # the first dimension of a feature map is 1
    max_rank: int | None = None  # of a tensor, its batch dimension included
    largest_number: float | None = None  # in a tensor of integers: masks go beyond it
    layout: str | None = None  # "NHCWB16": feature maps are brought to it at the borders
    channel_multiple: dict[DType, int] = {}  # channels are filled up to
    align_bytes: int | None = None  # of the last axis
    on_chip_bytes: int | None = None  # of memory that activations can stay in
    fused: tuple[str, ...] = ()  # activations that a product computes, by their aten names
    ops: tuple[OpRule, ...] = ()
    prefers: tuple[Preference, ...] = ()
    notes: tuple[str, ...] = ()

    def of_op(self, op: str) -> tuple[OpRule, ...]:
        """The rules of one op in the order in which they are asked; empty: nothing says that it runs."""
        return tuple(rule for rule in self.ops if op in rule.ops)

    def prefers_rewrite(self, name: str) -> Preference | None:
        """Why this NPU runs better after a rewrite; None: nothing says so."""
        return next((each for each in self.prefers if each.rewrite == name), None)


def npu_ids() -> tuple[str, ...]:
    """The NPU architectures whose rules ship with edgekit."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in files(FILES).iterdir() if p.name.endswith(".toml")))


@cache
def npu_rules(name: str) -> NpuRules:
    """The rules of an NPU architecture, by id or by path to a TOML file.

    Raises `UnknownName` with the nearest ids, `InvalidInput` for a file that does not follow the schema.
    """
    if name.endswith(".toml"):
        return parse_rules(_text(Path(name)), name)
    if name not in npu_ids():
        raise unknown_name("NPU", name, npu_ids())
    return parse_rules(files(FILES).joinpath(f"{name}.toml").read_text(encoding="utf-8"), name)


def rules_of(device: DeviceProfile) -> NpuRules:
    """The rules of a device's NPU. Raises `InvalidInput` where it has none, with the devices that have one."""
    found = next((unit.npu for unit in device.unit if unit.npu is not None), None)
    if found is None:
        having = [each for each in device_ids() if any(unit.npu for unit in load_shipped(each).unit)]
        raise InvalidInput(f"'{device.id}' has no NPU whose rules are known; these have: {', '.join(having)}")
    return npu_rules(found)


def parse_rules(text: str, origin: str) -> NpuRules:
    """Rules from the text of a TOML file; `origin` is what messages call it. Raises `InvalidInput`."""
    rules = NpuRules.from_toml(text, SCHEMA, f"NPU rules '{origin}'")
    if problem := next(_problems(rules), None):
        raise InvalidInput(f"NPU rules '{origin}': {problem}")
    return rules


def _problems(rules: NpuRules) -> Iterator[str]:
    if not rules.dtypes:
        yield "dtypes is empty: name at least the dtype that models are brought to"
    sizes: dict[str, float | None] = {"max_rank": rules.max_rank, "largest_number": rules.largest_number}
    sizes |= {"align_bytes": rules.align_bytes, "on_chip_bytes": rules.on_chip_bytes}
    sizes |= {f"channel_multiple.{dtype}": multiple for dtype, multiple in rules.channel_multiple.items()}
    for name, size in sizes.items():
        if size is not None and not 1 <= size < math.inf:
            yield f"{name} must be 1 or more, not {size}; leave out what is not known"
    for index, rule in enumerate(rules.ops):
        if not rule.ops:
            yield f"ops[{index}] names no op"
        for measure, (least, most) in rule.limits.items():
            where = f"ops[{index}] ({', '.join(rule.ops)}) limits '{measure}'"
            if measure not in MEASURES:
                yield f"{where}, which cannot be measured: take one of {', '.join(sorted(MEASURES))}"
            elif not (math.isfinite(least) and math.isfinite(most) and least <= most):
                yield f"{where} to [{least}, {most}]: it needs two finite numbers, the lower one first"
    yield from _dangling(rules)


def _dangling(rules: NpuRules) -> Iterator[str]:
    """Names that lead nowhere, and fields that nothing vouches for."""
    cited = {f"evidence.{name}": source for name, source in rules.evidence.items()}
    cited |= {f"ops[{index}] ({', '.join(rule.ops)})": rule.source for index, rule in enumerate(rules.ops)}
    cited |= {f"prefers[{index}]": each.source for index, each in enumerate(rules.prefers)}
    for where, source in cited.items():
        if source not in rules.sources:
            yield f"{where} cites source '{source}', which is not in its [sources] table"
    given = {name for name in GENERAL if getattr(rules, name)}
    if silent := sorted(given - set(rules.evidence)):
        yield f"nothing vouches for {', '.join(silent)}: name a source for each in [evidence]"
    if idle := sorted(set(rules.evidence) - given):
        yield f"[evidence] vouches for {', '.join(idle)}, which the file does not give"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot read NPU rules '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"NPU rules '{path}' are not UTF-8 text") from error
