"""The report page: a browser may fetch nothing, measured and modelled stay apart, and every doubt is named."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from page_reader import Reader
from pages import bundle, comparison, emulated, full, measurement, metered, plain

from edgekit.bundle import Bundle, Unpacked
from edgekit.errors import InvalidInput
from edgekit.intervals import Interval
from edgekit.measurement import Control, summarize
from edgekit.op_profile import no_ops
from edgekit.page.bars import ranking
from edgekit.page.charts import histogram, shown_range
from edgekit.page.document import page
from edgekit.page.markup import Html, join, table, tag
from edgekit.page.overview import EMULATED

CSS = resources.files("edgekit.page").joinpath("style.css").read_text(encoding="utf-8")


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


def test_time_by_op_is_of_a_profiler_and_never_beside_what_was_not_measured() -> None:
    tables = Reader(page([bundle(plain, metered())])).tables
    [slowest] = [said for said in tables if said.startswith("Slowest ops of onnx int8, measured at export")]
    assert "Conv\nstem\nnot known\n3.100\n63.3%\nstem_conv\n" in slowest
    assert "Resize\nup\nmodel.py:41\n0.700\n14.3%\nnot known\n" in slowest
    [types] = [said for said in tables if said.startswith("Types of ops of")]
    assert "Conv\nnpu\n2\n4.200\n85.7%\n" in types
    assert not [said for said in tables if "3.100" in said and ("mJ" in said or "modelled" in said)]


def test_the_chart_of_ops_says_its_shares() -> None:
    found = Reader(page([bundle(plain, metered())]))
    labels = [str(svg["aria-label"]) for svg in found.named("svg")]
    assert "Share of the time of all ops: Conv, npu 85.7%, Resize, cpu 14.3%" in labels
    assert "3 ops, 4.90 ms by a profiler, medians of 2 inferences; the fastest took 5.60 ms watched" in found.said


def test_ops_that_no_profiler_timed_have_a_reason_or_the_way_to_ask() -> None:
    assert "edgekit profile OUT --ops -o profile.json" in Reader(page([bundle(plain, measurement())])).said
    reason = measurement(ops=no_ops("the native runner", "it was built without ExecuTorch's event tracer"))
    said = Reader(page([bundle(plain, reason)])).said
    assert "no times of ops by the native runner: it was built without ExecuTorch's event tracer" in said


def test_the_smallest_of_many_ops_are_one_bar() -> None:
    rows = [(f"op{at}", 1 / 20) for at in range(20)]
    [drawn] = Reader(ranking(rows, "Shares")).named("svg")
    assert str(drawn["aria-label"]).endswith("op8 5.0%, 11 more 55.0%")
    [drawn] = Reader(ranking(rows[:10], "Shares")).named("svg")
    assert str(drawn["aria-label"]).endswith("op8 5.0%, op9 5.0%")


def test_a_comparison_stands_with_its_verdict_and_interval() -> None:
    found = Reader(shown())
    [said] = [said for said in found.tables if said.startswith("Comparisons")]
    assert "out/tflite / out/onnx, compare.json\n0.530\n0.477 to 0.583\n5\n" in said
    assert "out/tflite is 1.89x as fast as out/onnx" in found.texts
    slow = msgspec.structs.replace(comparison(), a=emulated())
    assert f"out/tflite / out/onnx ({EMULATED})" in Reader(page([bundle()], [], [("c.json", slow)])).said


@pytest.mark.parametrize(
    "changes", [{"ratio": 0.0}, {"ratio": math.nan}, {"ratio_ci": Interval(low=2, high=1)}, {"trial_ratios": (1e300,)}]
)
def test_a_comparison_that_no_run_gives_is_refused(changes: dict[str, Any]) -> None:
    odd = msgspec.structs.replace(comparison(), **changes)
    with pytest.raises(InvalidInput, match=r"c\.json of 'out/tflite'"):
        page([bundle()], [], [("c.json", odd)])


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


def test_a_warning_of_all_bundles_is_said_once_and_one_of_some_names_them() -> None:
    made = bundle(sha256="d" * 64, format="tflite")
    other = msgspec.structs.replace(made.manifest, warnings=(*made.manifest.warnings, "not measured: why"))
    texts = Reader(page([bundle(), Bundle(Path("out/tflite"), other)])).texts
    assert texts.count("only 30 calibration samples") == 1
    assert "tflite int8: not measured: why" in texts


def test_fallbacks_come_with_their_source_lines() -> None:
    [found] = [said for said in Reader(page([bundle()])).tables if "did not run on npu" in said]
    assert "Resize\n1\nup\nmodel.py:41\nnot nearest\n" in found


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
