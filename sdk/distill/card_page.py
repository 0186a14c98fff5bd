"""The card as a page: what follows, the student beside its controls, and how both were asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from edgekit.distill.card import STUDENT, TEACHER, Card
from edgekit.page.axes import RIGHT, WIDTH, axis, below
from edgekit.page.charts import drawing
from edgekit.page.document import document, section
from edgekit.page.markup import Html, bullets, join, pairs, table, tag

BAR, GAP, NAMES = 14.0, 8.0, 130.0  # heights, and the room that names take


def card_page(card: Card) -> str:
    """One HTML document; the same card gives the same text."""
    title = f"{card.model}: a student for {card.site}"
    lead = (
        f"An encoder of {card.teacher_params:,} parameters, replaced by one of {card.student_params:,}. "
        "All figures are of images that nothing was trained on."
    )
    body = tag(
        "body",
        tag("header", tag("p", "edgekit distill", class_="kicker"), tag("h1", title), tag("p", lead, class_="lead")),
        tag("main",
            section("verdicts", "What follows", tag("section", bullets(card.verdicts))),
            section("figures", "Student and controls", _figures(card)),
            section("judged", "How it was judged", tag("section", _judged(card)))),
        tag("footer", tag("p", "Made by edgekit distill.")),
    )  # fmt: skip
    return document(title, body)


def card_table(card: Card) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the student first, then its controls, the teacher last."""
    kinds = list(card.agreement)
    columns = ["encoder", "R2", "cosine", "worst channel"]
    columns += [f"to teacher, {kind}" for kind in kinds]
    columns += [f"to truth, {kind}" for kind in card.quality or {}]
    rows = []
    for name, each in {STUDENT: card, **card.controls}.items():
        cells = [each.r2, each.cosine, each.worst_channel_r2, *(each.agreement[kind] for kind in kinds)]
        rows.append([name, *(f"{value:.3f}" for value in [*cells, *(each.quality or {}).values()])])
    exact = ["1", "1", "1", *("1" for _ in kinds)]
    rows.append([TEACHER, *exact, *(f"{value:.3f}" for value in (card.teacher_quality or {}).values())])
    return columns, rows


def _figures(card: Card) -> Html:
    columns, rows = card_table(card)
    charts = [_bars(f"{card.metric} to the teacher, {kind}", _agreement(card, kind)) for kind in card.agreement]
    said = f"Every encoder in the teacher's place; {card.metric} to what the teacher answers, and to the truth"
    listed = table(said, columns, rows, set(range(1, len(columns))))
    return tag("section", tag("div", *charts, class_="figures"), listed)


def _agreement(card: Card, kind: str) -> list[tuple[str, float]]:
    controls = [(name, each.agreement[kind]) for name, each in card.controls.items()]
    return [(STUDENT, card.agreement[kind]), *controls]


def _bars(title: str, rows: Sequence[tuple[str, float]]) -> Html:
    """Values from 0 to 1, one bar each."""
    across = axis(0.0, 1.0, NAMES, RIGHT)
    shapes = []
    for (name, value), top in zip(rows, count(0.0, BAR + GAP), strict=False):
        wide = max(0.0, across.at(value) - NAMES)
        shapes += [
            tag("text", name, x=NAMES - 6, y=top + 11, text_anchor="end"),
            tag("rect", x=NAMES, y=top, width=wide, height=BAR, class_="part0" if name == STUDENT else "part5"),
            tag("text", f"{value:.3f}", x=min(NAMES + wide + 4, WIDTH - 30), y=top + 11, class_="label"),
        ]
    floor = len(rows) * (BAR + GAP)
    said = ", ".join(f"{name} {value:.3f}" for name, value in rows)
    chart = drawing(f"{title}: {said}", floor + 20, *shapes, below(across, floor, ""))
    return tag("figure", tag("figcaption", title), chart)


def _judged(card: Card) -> Html:
    facts = [
        ("task", card.task),
        ("images", f"{card.images}, of which {card.images_with_truth} with ground truth"),
        ("R2", "share explained of the variance of the teacher's channels over images and places"),
        ("cosine", "between the channels of student and teacher, mean over all places"),
        (card.metric, "mean over images; to what the teacher decides, and to the truth where there is one"),
        ("controls", "the student before training, the mean of the teacher's embeddings for every image, and with "
                     "refinement the student before it and the student after as many more steps of stage 1"),
    ]  # fmt: skip
    return join([pairs(facts)])
