"""Which ops take the time: what the profiler of each runtime noted, by type and one by one."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.op_profile import OpProfile, by_type
from edgekit.page.bars import ranking
from edgekit.page.markup import Html, folded, join, table, tag
from edgekit.page.overview import where_text
from edgekit.page.subjects import Run
from edgekit.report_ops import op_table, ops_text, type_table

MOST_TYPES, MOST_OPS = 40, 12
HOW = "No time of an op was measured: edgekit profile OUT --ops -o profile.json, then --measurement profile.json."
EXPLAINED = (
    "Measured by the profiler of the runtime, in a process of its own. A profiler takes time itself: read shares here, "
    "and times of calls under Latency. Names of ops and of units are the runtime's own."
)


def ops(runs: Sequence[Run]) -> Html:
    """The ops of every run whose ops were asked for."""
    parts = [_one(run, run.measured.ops) for run in runs if run.measured.ops]
    return join([tag("p", EXPLAINED, class_="lead"), *parts]) if parts else tag("p", HOW)


def _one(run: Run, found: OpProfile) -> Html:
    head = [tag("h3", f"{run.label}, {run.origin}"), tag("p", where_text(run), class_="where")]
    if not found.ops:
        return tag("section", *head, tag("p", ops_text(found)))
    types, slowest = type_table(found, MOST_TYPES), op_table(found, MOST_OPS)
    numbers = {slowest[0].index(column) for column in ("ms", "share")}
    groups, several = by_type(found.ops), len({op.unit for op in found.ops}) > 1
    bars = [(f"{each.op}, {each.unit}" if several else each.op, each.share) for each in groups]
    figure = tag("figure", ranking(bars, "Share of the time of all ops"), tag("figcaption", f"{ops_text(found)}."))
    return tag(
        "section",
        *head,
        figure,
        table(f"Slowest ops of {run.label}, {run.origin}", *slowest, numbers),
        folded("Types of ops", table(f"Types of ops of {run.label}, {run.origin}", *types, {2, 3, 4})),
    )
