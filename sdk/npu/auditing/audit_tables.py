"""What screen and page say of an audit: figures in words, ops that have the same trouble together, ranges."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from edgekit import registry
from edgekit.npu.adaptation import ADAPTATIONS
from edgekit.npu.auditing.audit import Audit, OpPlacement
from edgekit.npu.auditing.placement import Verdict
from edgekit.npu.numbers.bits import Bits
from edgekit.npu.numbers.ranges import TensorRange
from edgekit.npu.rewriting import REWRITES
from edgekit.types import Value

WORST_FIRST: tuple[Verdict, ...] = ("falls back", "needs a rewrite", "runs")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")  # of an entry of a list of modules


class Group(Value, frozen=True, kw_only=True):
    """Ops of one kind with the same verdict for the same reason, and how often at which place."""

    verdict: Verdict
    op: str
    reason: str
    fix: str
    macs: int
    places: dict[str, int]

    @property
    def count(self) -> int:
        """How many ops."""
        return sum(self.places.values())

    @property
    def remedy(self) -> str:
        """What helps, with what to type where that is known."""
        if self.fix in registry.names(ADAPTATIONS):
            return f"{self.fix} (--fix --allow {self.fix})"
        return f"{self.fix} (--fix)" if self.fix in registry.names(REWRITES) else self.fix

    @property
    def alike(self) -> dict[str, int]:
        """Places that differ in nothing but the numbers of layers are one: `encoder.layer.*.output (model.py:41)`."""
        found = Counter[str]()
        for where, count in self.places.items():
            module, _, source = where.partition(" ")
            found[f"{NUMBER.sub('*', module)} {source}".rstrip()] += count
        return dict(found)


def place(op: OpPlacement) -> str:
    """`encoder.layers.0.fc1 (model.py:41)`; a dot for the model itself."""
    return (op.module or ".") + (f" ({op.source})" if op.source else "")


def groups(placements: Sequence[OpPlacement]) -> list[Group]:
    """Ops alike, what runs last; of the rest, those with the most MACs first, then the worst verdict, then the most."""
    found: dict[tuple[Verdict, str, str, str], list[OpPlacement]] = {}
    for op in placements:
        found.setdefault((op.verdict, op.op, op.reason or "", op.fix or ""), []).append(op)
    made = [
        Group(verdict=verdict, op=name, reason=reason, fix=fix, macs=sum(op.macs for op in ops),
              places=dict(Counter(map(place, ops))))
        for (verdict, name, reason, fix), ops in found.items()
    ]  # fmt: skip
    return sorted(made, key=_rank)


def _rank(found: Group) -> tuple[bool, int, int, int, str]:
    return found.verdict == "runs", -found.macs, WORST_FIRST.index(found.verdict), -found.count, found.op


def facts(audit: Audit) -> list[tuple[str, str]]:
    """Label and figure of all that is true of the model as a whole."""
    runs = sum(op.verdict == "runs" for op in audit.placements)
    return [
        ("coverage", f"{runs} of {len(audit.placements)} ops ({audit.coverage_ops:.1%}), "
                     f"{audit.coverage_macs:.1%} of MACs"),
        ("known from", audit.basis),
        ("layout copies", str(audit.layout_copies) if audit.layout_copies else "none"),
        ("MACs on padding", f"{audit.wasted_macs:.1%} of what the NPU multiplies"),
        ("rank too high", _some(audit.high_rank)),
        ("sizes that vary", _some(audit.dynamic)),
    ]  # fmt: skip


def missing(audit: Audit, least: float) -> str:
    """Why a coverage gate is missed, by the largest parts: one sentence."""
    left = [each for each in groups(audit.placements) if each.verdict != "runs"]
    parts = [f"{each.op} x{each.count} ({each.reason})" for each in left[:3]]
    rest = f", and {len(left) - 3} more kinds of ops" if len(left) > 3 else ""
    return f"coverage {audit.coverage_macs:.1%} of MACs is below {least:g} %: not on the NPU: {'; '.join(parts)}{rest}"


def range_table(ranges: Sequence[TensorRange], schemes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, the tensor with the worst channel in the first scheme first."""

    def worst(found: TensorRange) -> float:
        return min(
            (found.sqnr[scheme].worst_db for scheme in schemes[:1] if scheme in found.sqnr), default=float("inf")
        )

    columns = ["tensor", "min", "max", "kurtosis", "max/std"]
    columns += [*(f"{scheme} worst/total dB" for scheme in schemes), "source line"]
    return columns, [_range_row(each, schemes) for each in sorted(ranges, key=worst)]


def _range_row(found: TensorRange, schemes: Sequence[str]) -> list[str]:
    cells = [found.name, f"{found.min:.3g}", f"{found.max:.3g}"]
    cells += ["-" if value is None else f"{value:.1f}" for value in (found.kurtosis, found.max_over_std)]
    ratios = [found.sqnr.get(scheme) for scheme in schemes]
    cells += ["-" if each is None else f"{each.worst_db:.1f} / {each.total_db:.1f}" for each in ratios]
    return [*cells, found.source or ""]


def bits_said(bits: Bits) -> str:
    """What 8 bits give, and how many ops need more: one sentence."""
    first, last = bits.curve[0], bits.curve[-1]
    said = f"{first.scheme} gives {first.total_db:.1f} dB"
    if not bits.met:
        return (
            f"{said}, and {last.scheme} at all {len(bits.ops)} ops {last.total_db:.1f}: {bits.min_db:g} is not reached"
        )
    if last is first:
        return f"{said}, and {bits.min_db:g} are asked for: no op needs more bits"
    return f"{said}, and {last.scheme} at {len(bits.curve) - 1} of {len(bits.ops)} ops {last.total_db:.1f}"


def bits_table(bits: Bits) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the ops that need more bits, the one that does most harm first."""
    alone = {op.name: op.alone_db for op in bits.ops}
    rows = [
        [point.op, point.scheme, f"{alone[point.op]:.1f}", f"{point.total_db:.1f}"] for point in bits.curve if point.op
    ]
    return ["op", "needs", f"dB with it alone in {bits.curve[0].scheme}", "dB of the model then"], rows


def _some(places: Sequence[str]) -> str:
    return f"{len(places)}: {'; '.join(places[:3])}" + ("; ..." if len(places) > 3 else "") if places else "none"
