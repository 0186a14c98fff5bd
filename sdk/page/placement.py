"""Where every op ran: the unit meant for it or another, and what moves data without computing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgekit.bundle import Delegation
from edgekit.page.bars import shares
from edgekit.page.markup import NOTHING, Html, bullets, folded, join, pairs, table, tag
from edgekit.page.subjects import Subject


def placement(subjects: Sequence[Subject]) -> Html:
    """Ops by unit, layout copies, float islands and fallbacks of each bundle."""
    return join(map(_of, subjects))


def _of(subject: Subject) -> Html:
    found = subject.manifest.delegation
    if found is None:
        return tag("section", tag("h3", subject.label), tag("p", "The runtime does not say where ops run."))
    return tag(
        "section",
        tag("h3", subject.label),
        shares([(unit, sum(ops.values())) for unit, ops in found.units.items()], "Ops by unit"),
        pairs(_facts(found)),
        _fallbacks(subject.label, found),
        folded("Ops by type", _types(subject.label, found)),
        _islands(found),
    )


def _facts(found: Delegation) -> list[tuple[str, str]]:
    share = found.layout_copies_share
    took = "their time is not known" if share is None else f"{share:.1%} of a call's time"
    return [
        (f"ops on {found.unit}", f"{found.delegated_share:.1%}, in {found.partitions} piece(s)"),
        ("layout copies", f"{found.layout_copies}, {took}" if found.layout_copies else "none"),
        ("float islands", str(len(found.float_islands)) if found.float_islands else "none"),
        ("fallbacks", str(len(found.fallbacks)) if found.fallbacks else "none"),
    ]


def _fallbacks(label: str, found: Delegation) -> Html:
    if not found.fallbacks:
        return NOTHING
    counts = Counter((each.op, each.where, each.source or "not known", each.reason) for each in found.fallbacks)
    rows = [[op, str(count), *rest] for (op, *rest), count in counts.items()]
    columns = ["op", "times", "module", "source line", "reason"]
    return table(f"Ops of {label} that did not run on {found.unit}", columns, rows, {1})


def _types(label: str, found: Delegation) -> Html:
    counts = Counter({(op, unit): count for unit, ops in found.units.items() for op, count in ops.items()})
    rows = [
        [op, unit, str(count)] for (op, unit), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return table(f"Ops of {label} by type", ["op", "unit", "ops"], rows, {2})


def _islands(found: Delegation) -> Html:
    return folded("Float islands", bullets(found.float_islands)) if found.float_islands else NOTHING
