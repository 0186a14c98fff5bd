"""A drawing of a model: its ops in the order they run, a mark each, a picture for each module, coloured by verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile

from edgekit.npu.auditing.audit import OpPlacement
from edgekit.npu.auditing.audit_tables import place
from edgekit.npu.auditing.placement import Verdict
from edgekit.page.axes import WIDTH
from edgekit.page.charts import drawing
from edgekit.page.markup import NOTHING, Html, escape, join, tag

MOST_MARKS = 4000
PITCH, SIDE, SMALL = 10.0, 9.0, 6.0  # from mark to mark; of a product's mark, and of another op's
PER_LINE = int(WIDTH / PITCH)
COLOURS: dict[Verdict, str] = {"runs": "part2", "needs a rewrite": "part1", "falls back": "part4"}


def op_map(placements: Sequence[OpPlacement]) -> Html:
    """All ops, a picture for each module. The title of a mark says what the op is."""
    shown = placements[:MOST_MARKS]
    figures = tag("div", *(_row(name, ops) for name, ops in rows(shown)), class_="figures")
    rest = len(placements) - len(shown)
    more = tag("p", f"and {rest:,} more ops, see the table") if rest else NOTHING
    return join([legend(), figures, more])


def rows(placements: Sequence[OpPlacement], depth: int = 0) -> Iterator[tuple[str, list[OpPlacement]]]:
    """Ops that follow each other in one module: the outermost modules that fit a line, and what is in between."""
    paths = [op.module.split(".") for op in placements]
    if len(placements) <= PER_LINE or all(path == paths[0] for path in paths):
        common = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        yield ".".join(parts[0] for parts in common) or "the model itself", list(placements)
        return
    for _, run in groupby(placements, lambda op: op.module.split(".")[: depth + 1]):
        yield from rows(list(run), depth + 1)


def verdict_bar(parts: dict[Verdict, float], what: str) -> Html:
    """One bar whose parts are shares of a whole, in the colours of the marks."""
    whole, x, shapes = sum(parts.values()) or 1.0, 0.0, list[Html]()
    for verdict in COLOURS:
        wide = WIDTH * parts.get(verdict, 0.0) / whole
        shapes.append(tag("rect", x=x, y=0, width=wide, height=18, class_=COLOURS[verdict]))
        x += wide
    texts = {each: f"{each} {parts.get(each, 0.0) / whole:.1%}" for each in COLOURS}
    bar = drawing(f"{what}: {', '.join(texts.values())}", 18, *shapes, stretch=True)
    keys = tag("ul", *(tag("li", _key(each), text) for each, text in texts.items()), class_="keys")
    return join([tag("div", bar, class_="shares"), keys])


def legend() -> Html:
    """What the colours, shapes and sizes of marks stand for."""
    keys = [tag("li", _key(verdict), verdict) for verdict in COLOURS]
    return tag("ul", *keys, tag("li", "large: a product of matrices; small: another op"), class_="keys")


def counted(ops: Sequence[OpPlacement]) -> str:
    """`runs 12, falls back 2`: how many ops have which verdict, in the order of the legend."""
    counts = Counter(op.verdict for op in ops)
    return ", ".join(f"{verdict} {counts[verdict]}" for verdict in COLOURS if counts[verdict])


def _row(name: str, ops: Sequence[OpPlacement]) -> Html:
    marks = [_mark(op, PITCH * (at % PER_LINE), PITCH * (at // PER_LINE)) for at, op in enumerate(ops)]
    picture = drawing(escape(f"{name}: {counted(ops)}"), PITCH * -(-len(ops) // PER_LINE), *marks)
    return tag("figure", tag("figcaption", tag("strong", name), f": {counted(ops)}"), picture)


def _mark(op: OpPlacement, x: float, y: float) -> Html:
    said = ": ".join(filter(None, (f"{op.op} in {place(op)}", op.verdict, op.reason)))
    side = SIDE if op.macs else SMALL
    inset = (SIDE - side) / 2
    return tag("path", tag("title", said), d=_shape(op.verdict, x + inset, y + inset, side), class_=COLOURS[op.verdict])


def _shape(verdict: Verdict, x: float, y: float, side: float) -> str:
    """A square, a triangle or a diamond, so that colours are not all that tells them apart."""
    if verdict == "runs":
        return f"M{x:g} {y:g}h{side:g}v{side:g}h{-side:g}z"
    half = side / 2
    if verdict == "needs a rewrite":
        return f"M{x:g} {y + side:g}l{half:g} {-side:g}l{half:g} {side:g}z"
    return f"M{x + half:g} {y:g}l{half:g} {half:g}l{-half:g} {half:g}l{-half:g} {-half:g}z"


def _key(verdict: Verdict) -> Html:
    shape = tag("path", d=_shape(verdict, 0, 0, SIDE), class_=COLOURS[verdict])
    return tag("svg", shape, viewBox=f"0 0 {SIDE:g} {SIDE:g}", class_="key", aria_hidden="true")
