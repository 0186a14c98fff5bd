"""The report page: what a bundle says is text, a browser may fetch nothing, and measured and modelled stay apart."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise, product
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import bundle, emulated, full, measurement, metered, parity, plain, slowing

from edgekit.bundle import Bundle, Delegation, Manifest, Unpacked
from edgekit.cli.app import run
from edgekit.errors import InvalidInput
from edgekit.intervals import Interval
from edgekit.measurement import Control, Measurement, summarize
from edgekit.page.charts import histogram, shown_range
from edgekit.page.document import page
from edgekit.page.markup import MOST_ROWS, MOST_TEXT, Html, escape, join, table, tag
from edgekit.page.overview import EMULATED
from edgekit.page.subjects import find_bundles, read_measurement

HOSTILE = "</title></style></svg><script>alert(1)</script><img src=x onerror=alert(1)>'\"&amp;\x00\u202e"
CSS = resources.files("edgekit.page").joinpath("style.css").read_text(encoding="utf-8")
VOID = {"meta", "br"}


class Reader(HTMLParser):
    """What a browser sees: elements with their attributes in order, the text in each, and whether they are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if name == "table":
            self.tables.append("")
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        self.texts.append(text)
        if "table" in self.open:
            self.tables[-1] += text + "\n"

    @property
    def said(self) -> str:
        return "".join(self.texts)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]


def shown() -> str:
    return page(*full())


def test_the_same_input_gives_the_same_page() -> None:
    assert shown() == shown()


def test_the_page_lets_a_browser_fetch_and_run_nothing() -> None:
    found = Reader(shown())
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policies = [a["content"] for a in found.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"]
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & {name for name, _ in found.elements}
    attributes = Counter(key for _, given in found.elements for key in given)
    assert not [key for key in attributes if key.startswith("on") or key in {"src", "style", "srcset"}]
    assert all(str(link["href"]).startswith("#") for link in found.named("a"))
    assert not re.search(r"url\(|@import|expression", CSS)


def test_every_link_leads_to_a_section() -> None:
    found = Reader(shown())
    known = {str(given["id"]) for _, given in found.elements if "id" in given}
    assert {str(link["href"])[1:] for link in found.named("a")} <= known


def test_screen_readers_get_names_for_everything() -> None:
    found = Reader(shown())
    assert found.named("html") == [{"lang": "en"}]
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in found.named("svg"))
    assert len(found.named("svg")) > 8
    assert len(found.named("caption")) == len(found.named("table")) > 10
    assert all(header["scope"] in {"col", "row"} for header in found.named("th"))
    levels = [int(name[1]) for name, _ in found.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_no_header_is_empty() -> None:
    assert "<th></th>" not in re.sub(r"<th [^>]*>", "<th>", shown())


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Source: WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "paper"])
def test_text_and_charts_stand_out_in_every_scheme(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    colours = {name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
               for name, value in re.findall(r"--([\w-]+): (#\w+)", blocks[scheme])}  # fmt: skip
    for ink in ("ink", "soft", "accent", "good", "bad"):
        assert contrast(colours[ink], colours["page"]) >= 4.5, ink
        assert contrast(colours[ink], colours["card"]) >= 4.5, ink
    assert contrast(colours["warn-ink"], colours["warn-card"]) >= 4.5
    for part in range(6):
        assert contrast(colours[f"part{part}"], colours["card"]) >= 3, part


def test_measured_and_modelled_joules_are_never_in_one_table() -> None:
    modelled, platform = (
        measurement(
            artifact_sha256=None,
            bundle="elsewhere",
            energy=msgspec.structs.replace(metered().energy, provenance=provenance, gross_j=gross_j, net_j=None),
        )
        for provenance, gross_j in (("modelled.analytical", 0.7777), ("estimated.platform", 0.5555))
    )
    files = [("metered.json", metered()), ("modelled.json", modelled), ("platform.json", platform)]
    tables = Reader(page([bundle(plain, measurement())], files)).tables
    figures = ("87.1", "123.5", "777.7", "555.5")
    holding = [[figure for figure in figures if figure in said.split()] for said in tables]
    assert [found for found in holding if found] == [["87.1"], ["555.5"], ["777.7"], ["123.5"]]


def test_a_missing_meter_shows_its_reason() -> None:
    said = Reader(page([bundle(plain, measurement())])).said
    assert "onnx int8, measured at export: not asked for: edgekit profile --energy measured [unavailable]" in said


def test_times_of_an_emulator_are_marked_wherever_they_stand() -> None:
    text = page([bundle(plain, emulated())])
    found = Reader(text)
    assert "latency, p50, emulated" in found.texts
    assert found.said.count(EMULATED) >= 5  # banner, card, latency, energy, state of the machine
    assert 'role="note"' in text
    assert EMULATED not in page([bundle(plain, measurement())])


def test_a_failure_of_parity_names_gates_and_modules() -> None:
    said = Reader(shown()).said
    for words in ("parity FAILED", "below its gate", "the gate is 14.00", "blocks.3.depthwise", "token 5 is 12"):
        assert words in said


def test_a_bundle_that_nobody_measured_or_verified_has_a_page_too() -> None:
    bare = msgspec.structs.replace(bundle().manifest, parity=None, delegation=None, against_float=None)
    said = Reader(page([Bundle(Path("out"), bare)])).said
    for words in ("Not measured yet", "Nothing was measured", "Not verified", "does not say where ops run"):
        assert words in said


def test_fallbacks_come_with_their_source_lines() -> None:
    [found] = [said for said in Reader(page([bundle()])).tables if "did not run on npu" in said]
    assert "Resize\nup\nmodel.py:41\nnot nearest\n" in found


def test_what_makes_a_run_doubtful_stands_before_its_charts() -> None:
    control = Control(ratio=1.2, ratio_ci=Interval(low=1.1, high=1.3), holds=False)
    made = measurement(warm=False, control=control)
    before_charts = page([bundle(plain, made)]).partition('id="speed"')[2].partition("<svg")[0]
    for doubt in ("soft temperature limit", "the warm-up reached no steady median", "A/A control FAILED"):
        assert doubt in before_charts


def test_a_packed_model_file_shows_what_it_becomes() -> None:
    plain_file = Unpacked(path="model.onnx", bytes=7_000_000, sha256="e" * 64, weights=3_400_000, bits_per_weight=10.9)
    made = bundle().manifest
    artifact = msgspec.structs.replace(made.artifacts[0], unpacked=plain_file)
    said = Reader(page([Bundle(Path("out"), msgspec.structs.replace(made, artifacts=(artifact,)))])).said
    assert "5.08 MB, 7.00 MB when loaded: 3.40 M bf16 weights in 10.90 bits each" in said


def test_measurements_go_to_the_bundle_whose_file_they_are_of() -> None:
    said = Reader(shown()).said
    for words in ("onnx int8, profile.json", "tflite int8, emulated.json", "out/onnx, old.json"):
        assert words in said
    assert "of no bundle on this page" in said


def test_bundles_that_would_have_one_name_are_told_apart_by_their_folders() -> None:
    said = Reader(page([bundle(), in_folder("elsewhere")])).said
    assert "onnx int8 (out/onnx)" in said
    assert "onnx int8 (elsewhere)" in said


def in_folder(path: str) -> Bundle:
    return Bundle(Path(path), bundle(sha256="d" * 64).manifest)


# Hostile bundles


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


# Parts


def test_markup_is_not_escaped_twice_and_text_always_once() -> None:
    assert tag("b", "<", tag("i", "&")) == "<b>&lt;<i>&amp;</i></b>"
    assert join(["a", Html("<br>"), "b"], " & ") == "a &amp; <br> &amp; b"
    assert tag("p", tag("i", "x") + "y") == "<p>&lt;i&gt;x&lt;/i&gt;y</p>"  # a sum is text again: seen, and not run
    assert tag("path", d=1.0, class_=None, stroke_width=2.345) == '<path d="1" stroke-width="2.35"></path>'


def test_a_table_names_its_rows_and_columns() -> None:
    found = Reader(table("Sizes", ["dtype", "bytes"], [["int8", "5"]], {1}))
    assert [header["scope"] for header in found.named("th")] == ["col", "col", "row"]
    assert found.texts == ["Sizes", "dtype", "bytes", "int8", "5"]


def test_a_single_slow_call_does_not_squeeze_the_others() -> None:
    latency = summarize([0.010 + 0.0001 * (call % 10) for call in range(99)] + [5.0])
    low, high = shown_range(latency)
    assert (low, high) == (0.010, pytest.approx(0.0109))
    bars = [given for given in Reader(histogram(latency)).named("rect") if given["class"] == "bar"]
    assert len(bars) == 10
    assert "1 calls lie beyond, the slowest at 5000.00 ms" in page(
        [bundle(plain, measurement(latency=latency, trials=()))]
    )


# The command


def saved(folder: Path) -> Path:
    """A bundle on disk with real files, beside a measurement of it."""
    from test_bundle import make

    root = make(folder / "out" / "onnx")
    (folder / "profile.json").write_text(measurement(artifact_sha256=None, bundle=str(root)).to_json())
    return root


def test_the_command_writes_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    target = tmp_path / "report.html"
    arguments = ["report", str(tmp_path / "out"), "--measurement", str(tmp_path / "profile.json"), "-o", str(target)]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"page": str(target), "bytes": target.stat().st_size, "bundles": [str(tmp_path / "out/onnx")],
                    "measurements": 1}  # fmt: skip
    said = Reader(target.read_text(encoding="utf-8")).said
    assert "onnx fp32, profile.json" in said
    assert run(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert run([*arguments, "--force"]) == 0
    assert "1 bundle(s) on one page" in capsys.readouterr().out


def test_what_is_no_measurement_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "profile.json"
    with pytest.raises(InvalidInput, match=r"profile\.json.*edgekit profile OUT -o"):
        read_measurement(wrong)
    wrong.write_text('{"error": "BundleCorrupt"}')
    with pytest.raises(InvalidInput, match="not a valid Measurement"):
        read_measurement(wrong)
    wrong.write_text(measurement().to_json().replace('"load_s": 0.21', '"load_s": NaN'))
    with pytest.raises(InvalidInput, match="not valid JSON"):
        read_measurement(wrong)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_a_damaged_measurement_is_an_error_with_a_sentence(noise: bytes) -> None:
    whole = measurement().to_json().encode()
    for text in (noise, whole[: len(noise) * 7] + noise):
        with pytest.raises(InvalidInput):
            Measurement.from_json(text)


def test_a_folder_without_bundles_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a bundle"):
        find_bundles([tmp_path])
