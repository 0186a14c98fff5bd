"""Shares of a whole as bars in SVG, their figures in the alternative text."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.page.axes import LEFT, RIGHT, WIDTH, axis
from edgekit.page.charts import drawing, keys, shortened
from edgekit.page.markup import Html, tag

SERIES = 6  # colours
MOST_BARS = 9
BAR_ROW = 30  # height of a name with its bar
SHARE_ROOM, LETTERS = 64, 41  # for "under 0.1%", and of the name behind it


def shares(parts: Sequence[tuple[str, float]], what: str) -> Html:
    """One bar whose parts are shares of a whole, the largest first."""
    ordered = sorted(((name, max(0.0, size)) for name, size in parts), key=lambda part: (-part[1], part[0]))
    named, rest = ordered[: SERIES - 1], ordered[SERIES - 1 :]
    if rest:
        named.append((rest[0][0] if len(rest) == 1 else f"{len(rest)} more", sum(size for _, size in rest)))
    whole = sum(size for _, size in named) or 1.0
    x, shapes = 0.0, []
    for at, (_, size) in enumerate(named):
        wide = WIDTH * size / whole
        shapes.append(tag("rect", x=x, y=0, width=wide, height=18, class_=f"part{at}"))
        x += wide
    texts = [f"{name} {_percent(size / whole)}" for name, size in named]
    bar = drawing(f"{what}: {', '.join(texts)}", 18, *shapes, stretch=True)
    return tag("div", bar, keys(texts), class_="shares")


def ranking(rows: Sequence[tuple[str, float]], what: str) -> Html:
    """A bar for each share of a whole, in the order they come; the smallest of many are one."""
    named, rest = list(rows[:MOST_BARS]), rows[MOST_BARS:]
    if rest:
        named.append(rest[0] if len(rest) == 1 else (f"{len(rest)} more", sum(share for _, share in rest)))
    most = max([1e-9, *(share for _, share in named)])
    across, shapes = axis(0, most, LEFT / 4, RIGHT), []
    for at, (name, share) in enumerate(named):
        y = float(BAR_ROW * at)
        shapes += [
            tag("text", _percent(share), x=across.start, y=y + 11),
            tag("text", shortened(name, LETTERS), x=across.start + SHARE_ROOM, y=y + 11, class_="label"),
            tag("rect", x=across.start, y=y + 16, width=across.at(share) - across.start, height=7, class_="bar"),
        ]
    texts = [f"{name} {_percent(share)}" for name, share in named]
    return drawing(f"{what}: {', '.join(texts)}", BAR_ROW * len(named) + 2, *shapes)


def _percent(share: float) -> str:
    return "under 0.1%" if 0 < share < 0.001 else f"{share:.1%}"
