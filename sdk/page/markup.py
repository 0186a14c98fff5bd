"""HTML, escaped by construction: a `str` is what a bundle says and is escaped, `Html` is what this code wrote."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Sequence

MOST_TEXT = 600  # characters of one text of a bundle
MOST_ROWS = 200  # of one table
# What a browser would not show as it stands: control characters, lone surrogates, and marks that turn the direction of
# text around, with which a name can read as another one.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]"
)
VOID = frozenset({"meta", "br"})


class Html(str):
    """Markup that is escaped already. Joined by `+` it is a plain `str` again, and would be escaped once more."""

    __slots__ = ()


NOTHING = Html("")


def escape(text: str) -> Html:
    """Untrusted text as HTML: cut where it is long, without characters that hide."""
    if isinstance(text, Html):
        return text
    rest = len(text) - MOST_TEXT
    shown = f"{text[:MOST_TEXT]}… ({rest} more characters)" if rest > 0 else text
    return Html(html.escape(UNSEEN.sub("\N{REPLACEMENT CHARACTER}", shown)))


def tag(name: str, *children: str, **attributes: str | float | None) -> Html:
    """An element. `class_` stands for `class`, `_` for `-`; an attribute that is None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Texts one after the other, each escaped unless it is markup."""
    return Html(escape(between).join(escape(part) for part in parts))


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> Html:
    """A table whose first cells name their rows; columns in `numbers` are set to the right. Scrolls where narrow."""
    head = tag(
        "tr", *(tag("th", column, scope="col", class_=_number(at, numbers)) for at, column in enumerate(columns))
    )
    body = [
        tag("tr", tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=_number(at, numbers)) for at, cell in enumerate(row[1:], 1)))
        for row in rows[:MOST_ROWS]
    ]  # fmt: skip
    if len(rows) > MOST_ROWS:
        body.append(tag("tr", tag("td", f"and {len(rows) - MOST_ROWS} more", colspan=len(columns))))
    made = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", made, class_="scroll", tabindex=0, role="region", aria_label=escape(caption))


def pairs(rows: Iterable[tuple[str, str]]) -> Html:
    """Labels with their values."""
    return tag("dl", *(tag("div", tag("dt", label), tag("dd", value)) for label, value in rows))


def bullets(texts: Sequence[str], kind: str | None = None) -> Html:
    """A list of sentences; nothing where there are none."""
    rest = [f"and {len(texts) - MOST_ROWS} more"] if len(texts) > MOST_ROWS else []
    return tag("ul", *(tag("li", text) for text in [*texts[:MOST_ROWS], *rest]), class_=kind) if texts else NOTHING


def folded(title: str, *children: str, kind: str | None = None) -> Html:
    """What most readers skip; open on paper unless its kind is `long`."""
    return tag("details", tag("summary", title), *children, class_=kind)


def _attribute(value: str | float) -> str:
    if isinstance(value, str):  # this code's own, and long where it is a path; what a bundle says is escaped before
        return value if isinstance(value, Html) else html.escape(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _number(at: int, numbers: Collection[int]) -> str | None:
    return "number" if at in numbers else None
