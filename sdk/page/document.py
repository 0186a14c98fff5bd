"""The page as a whole: sections under one head whose policy lets a browser fetch nothing and run nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from edgekit.bundle import Bundle
from edgekit.measurement import Comparison, Measurement
from edgekit.page.accuracy import accuracy
from edgekit.page.content import content
from edgekit.page.environment import environment
from edgekit.page.joules import joules
from edgekit.page.markup import Html, join, tag
from edgekit.page.ops import ops
from edgekit.page.overview import heading, overview, provenance
from edgekit.page.placement import placement
from edgekit.page.speed import speed
from edgekit.page.subjects import check_comparisons, subjects
from edgekit.page.versus import versus


def page(
    bundles: Sequence[Bundle],
    measurements: Sequence[tuple[str, Measurement]] = (),
    compared: Sequence[tuple[str, Comparison]] = (),
) -> str:
    """One HTML document about bundles, further measurements and comparisons, these with the names of their files.

    The same input gives the same text. Raises `InvalidInput` for figures that no run gives.
    """
    shown, strays = subjects(bundles, measurements)
    check_comparisons(compared)
    runs = [run for subject in shown for run in subject.runs] + strays
    sections = [
        ("overview", "Overview", overview(shown)),
        ("accuracy", "Parity", accuracy(shown)),
        ("speed", "Latency", join([versus(compared), speed(runs)])),
        ("ops", "Time by op", ops(runs)),
        ("energy", "Energy", joules(runs)),
        ("placement", "Where ops run", placement(shown)),
        ("content", "Sizes and memory", content(shown)),
        ("environment", "Environment", environment(shown, runs)),
        ("provenance", "Where it came from", provenance(shown)),
    ]
    links = [tag("li", tag("a", title, href=f"#{key}")) for key, title, _ in sections]
    body = tag(
        "body",
        tag("a", "Skip to the figures", href="#overview", class_="skip"),
        heading(shown, strays),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(section(key, title, inner) for key, title, inner in sections)),
        tag("footer", tag("p", FOOTER)),
    )
    title = ", ".join(dict.fromkeys(subject.manifest.name for subject in shown))
    return document(f"{title}: edgekit report", body)


FOOTER = (
    "Made by edgekit report from the manifests of the bundles. Times are of the machine that is named beside them. "
    "MB are 10^6 bytes. Intervals are 95 % confidence intervals."
)


def document(title: str, body: Html) -> str:
    """A whole HTML document of one body."""
    return "<!doctype html>\n" + tag("html", _head(title), body, lang="en") + "\n"


def section(key: str, title: str, inner: Html) -> Html:
    """A part of the page that its heading names."""
    return tag("section", tag("h2", title, id=f"{key}-title"), inner, id=key, aria_labelledby=f"{key}-title")


def _head(title: str) -> Html:
    style = resources.files("edgekit.page").joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return join(
        [
            tag("head",
                tag("meta", charset="utf-8"),
                tag("meta", http_equiv="Content-Security-Policy", content=policy),
                tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
                tag("meta", name_="color-scheme", content="light dark"),
                tag("meta", name_="referrer", content="no-referrer"),
                tag("title", title),
                tag("style", Html(style)))
        ]
    )  # fmt: skip
