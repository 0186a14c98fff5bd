"""The time of ops for people, the same on the terminal and on the page."""

from __future__ import annotations

from edgekit.op_profile import OpProfile, by_type
from edgekit.report import milliseconds

NOWHERE = "not known"  # of a module: the runtime names an op by its kernel alone


def ops_text(profile: OpProfile) -> str:
    """One line: who measured how many ops, and what watching cost; or why there are none."""
    if profile.reason is not None:
        return f"no times of ops by {profile.by}: {profile.reason}"
    whole = f"{len(profile.ops)} ops, {milliseconds(profile.ops_s)} by {profile.by}"
    text = f"{whole}, medians of {profile.inferences} inferences"
    if profile.watched_s is None or profile.plain_s is None:
        return text
    return f"{text}; the fastest took {milliseconds(profile.watched_s)} watched, {milliseconds(profile.plain_s)} not"


def type_table(profile: OpProfile, most: int) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the slowest types of ops; what is not shown is one row."""
    groups = by_type(profile.ops)
    rows = [[o.op, o.unit, str(o.calls), _figure(o.seconds), f"{o.share:.1%}"] for o in groups[:most]]
    if rest := groups[most:]:
        shown = [_figure(sum(o.seconds for o in rest)), f"{sum(o.share for o in rest):.1%}"]
        rows.append([f"{len(rest)} more types", "", str(sum(o.calls for o in rest)), *shown])
    return ["op", "unit", "calls", "ms", "share"], rows


def op_table(profile: OpProfile, most: int) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the slowest ops; columns that would say nothing are left out."""
    shown = profile.ops[:most]
    columns: dict[str, list[str | None]] = {
        "op": [o.op for o in shown],
        "module": [o.module for o in shown],
        "source": [o.source for o in shown],
        "ms": [_figure(o.seconds) for o in shown],
        "share": [f"{o.share:.1%}" for o in shown],
        "name": [o.name for o in shown],
    }
    told = {column: [cell or NOWHERE for cell in cells] for column, cells in columns.items() if any(cells)}
    return list(told), [list(row) for row in zip(*told.values(), strict=True)]


def _figure(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"
