"""Whatever a bundle says is text on its report page, and whatever it counts is drawn on the page or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import resources
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import Reader
from pages import bundle, full, measurement, metered, parity, plain, slowing

from edgekit.bundle import Bundle, Delegation, Manifest
from edgekit.errors import InvalidInput
from edgekit.measurement import summarize
from edgekit.page.document import page
from edgekit.page.markup import MOST_ROWS, MOST_TEXT, escape, tag

HOSTILE = "</title></style></svg><script>alert(1)</script><img src=x onerror=alert(1)>'\"&amp;\x00\u202e"
CSS = resources.files("edgekit.page").joinpath("style.css").read_text(encoding="utf-8")


def shown() -> str:
    return page(*full())


def skeleton(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Elements and the names of their attributes: what no text of a bundle may change."""
    return [(name, tuple(given)) for name, given in Reader(text).elements]


def test_markup_in_a_bundle_is_text() -> None:
    hostile = page(*full(lambda name: name + HOSTILE))
    assert skeleton(hostile) == skeleton(shown())
    assert "<script" not in hostile
    assert "\x00" not in hostile
    assert "\u202e" not in hostile


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_no_text_changes_the_structure_of_the_page(before: str, after: str) -> None:
    hostile = page(*full(lambda name: f"{before}{name}{after}"))
    assert skeleton(hostile) == skeleton(shown())
    hostile.encode()


@given(st.text())
def test_text_comes_back_as_it_was_unless_it_hides(text: str) -> None:
    seen = Reader(tag("p", text, title=escape(text)))
    assert seen.named("p")[0]["title"] == seen.said
    if text.isprintable() and len(text) <= MOST_TEXT and "\u2060" not in text:
        assert seen.said == text


def test_huge_texts_and_lists_are_cut_and_say_so() -> None:
    many = bundle(lambda name: name + 100_000 * "x")
    changes = 5000 * many.manifest.changes
    text = page([Bundle(many.path, msgspec.structs.replace(many.manifest, changes=changes))])
    assert len(text) < 2_000_000
    assert "more characters)" in text
    assert f"and {len(changes) - MOST_ROWS} more" in text


DRAWN = {"d", "points", "x", "y", "cx", "cy", "width", "height"}
ODD = (0.0, -1.0, 1e-300, 1e-3, 0.5, 3.0, 7e4, 1e15, -1e15)


def scrambled(value: Any, numbers: Random, odd: Sequence[float]) -> Any:
    """The same document with other numbers, some of them left as they were."""
    if isinstance(value, dict):
        return {key: scrambled(each, numbers, odd) for key, each in value.items() if key != "schema_version"}
    if isinstance(value, list | tuple):
        return [scrambled(each, numbers, odd) for each in value]
    if isinstance(value, bool) or not isinstance(value, int | float) or numbers.random() < 0.3:
        return value
    return type(value)(numbers.choice(odd))


def odd_page(numbers: Random, odd: Sequence[float]) -> str:
    latency = summarize(slowing(60))
    long, short = (msgspec.structs.replace(made, latency=latency) for made in (metered(), measurement()))
    stored = msgspec.to_builtins(bundle(plain, long, short).manifest)
    manifest = msgspec.convert({**scrambled(stored, numbers, odd), "schema_version": 1}, Manifest)
    return page([Bundle(Path("out"), manifest)])


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_no_number_draws_outside_of_the_page(numbers: Random) -> None:
    with suppress(InvalidInput):  # a p50 of 0, say
        text = odd_page(numbers, ODD)
        drawn = [str(value) for _, given in Reader(text).elements for key, value in given.items() if key in DRAWN]
        places = [float(found) for value in drawn for found in re.split(r"[MHVLvh ,]", value) if found]
        assert len(places) > 50
        assert all(-1 <= place <= 400 for place in places)  # false for NaN


def without(value: Any, path: tuple[Any, ...], instead: Any) -> Any:
    """The document with something else at a path."""
    if not path:
        return instead
    if isinstance(value, dict):
        return {**value, path[0]: without(value[path[0]], path[1:], instead)}
    return [*value[: path[0]], without(value[path[0]], path[1:], instead), *value[path[0] + 1 :]]


def paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, of lists the first one."""
    parts = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list | tuple) else ()
    )
    for key, each in parts:
        yield (key,)
        yield from ((key, *rest) for rest in paths(each))


def test_every_part_may_be_missing_or_empty_where_the_schema_lets_it() -> None:
    long = msgspec.structs.replace(metered(), latency=summarize(slowing(40)))
    found = bundle(plain, long, found=parity(ok=False))
    stored = msgspec.json.decode(found.manifest.to_json())
    drawn = 0
    for path, instead in product(paths(stored), (None, [], {}, "")):
        with suppress(msgspec.ValidationError, InvalidInput):
            manifest = msgspec.convert(without(stored, path, instead), Manifest)
            if manifest.artifacts:  # `Bundle.open` refuses one without
                Reader(page([Bundle(Path("out"), manifest)]))
                drawn += 1
    assert drawn > 150


def test_counts_of_ops_that_cancel_out_are_drawn() -> None:
    made = bundle().manifest
    found = Delegation(unit="npu", units={"npu": {"Conv": 1}, "cpu": {"Conv": -1}})
    assert "100.0%" in page([Bundle(Path("out"), msgspec.structs.replace(made, delegation=found))])


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e300, 1.1e15])
def test_one_number_beyond_all_runs_is_refused(odd: float) -> None:
    made = measurement(latency=msgspec.structs.replace(summarize([0.1] * 6), drift=odd))
    with pytest.raises(InvalidInput, match=r"'onnx int8'|'out/onnx'"):
        page([bundle(plain, made)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load_s": float("nan")}, "no figure of a run"),
        ({"peak_rss_bytes": 10**400}, "no figure of a run"),
        ({"latency": msgspec.structs.replace(summarize([0.1]), times_s=())}, "needs times"),
        ({"latency": msgspec.structs.replace(summarize([0.1]), p50_s=0.0)}, "a p50 above 0"),
        ({"sustained": msgspec.structs.replace(metered().sustained, minute_1_p50_s=0.0)}, "first minute"),
    ],
)
def test_figures_that_no_run_gives_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        page([bundle(plain, measurement(**changes))])
