"""Bundles measured in turns: how much time one takes for each second of another."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.measurement import Comparison
from edgekit.page.charts import ratios
from edgekit.page.markup import NOTHING, Html, bullets, table, tag
from edgekit.report import EMULATED, milliseconds

EXPLAINED = (
    "Ratios of the time of a call, from alternating rounds of both bundles in trials of new processes. The interval is "
    "over trials. Where it holds 1, no difference was shown."
)


def versus(compared: Sequence[tuple[str, Comparison]]) -> Html:
    """What `edgekit compare` found, each pair with the file it was in; nothing where none was given."""
    if not compared:
        return NOTHING
    rows = [[f"{_pair(each)}, {file}", *_cells(each)] for file, each in compared]
    columns = ["pair", "time ratio", "95 % interval", "trials", "p50 of the first", "p50 of the second", "on"]
    chart = ratios([(_pair(each), each.ratio, each.ratio_ci) for _, each in compared])
    return tag(
        "section",
        tag("h3", "Compared in turns"),
        bullets([each.verdict for _, each in compared]),
        table("Comparisons", columns, rows, {1, 2, 3, 4, 5}),
        tag("figure", chart, tag("figcaption", EXPLAINED)),
    )


def _pair(each: Comparison) -> str:
    return f"{each.b.bundle} / {each.a.bundle}" + (f" ({EMULATED})" if each.a.emulated else "")


def _cells(each: Comparison) -> list[str]:
    return [
        f"{each.ratio:.3f}",
        f"{each.ratio_ci.low:.3f} to {each.ratio_ci.high:.3f}",
        str(len(each.trial_ratios)),
        milliseconds(each.b.latency.p50_s),
        milliseconds(each.a.latency.p50_s),
        f"{each.a.before.cpu or each.a.before.machine}, {each.a.threads} thread(s)",
    ]
