"""The page of an audit: its drawing, what it groups, and that a model's words stay words."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_reader import Reader

from edgekit.npu.auditing.audit import Audit, OpPlacement
from edgekit.npu.auditing.audit_map import COLOURS, MOST_MARKS, op_map, rows, verdict_bar
from edgekit.npu.auditing.audit_page import audit_page
from edgekit.npu.auditing.audit_tables import facts, groups, missing, range_table
from edgekit.npu.auditing.placement import Verdict
from edgekit.npu.numbers.noise import Sqnr
from edgekit.npu.numbers.ranges import TensorRange
from edgekit.npu.rules import npu_rules

VERDICTS: tuple[Verdict, ...] = ("runs", "needs a rewrite", "falls back")
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


def op(module: str, verdict: Verdict = "runs", **changes: object) -> OpPlacement:
    given = {"op": "linear", "source": "model.py:41", "reason": None, "fix": None, "macs": 0, "padded_macs": 0}
    return OpPlacement(module=module, verdict=verdict, **{**given, "copies_bytes": 0, **changes})  # type: ignore[arg-type]


def audited(*placements: OpPlacement, **changes: object) -> Audit:
    given = {
        "model": "toy", "npu": "rk3588-npu", "device": "rk3588", "coverage_ops": 0.5, "coverage_macs": 0.9,
        "layout_copies": 2, "wasted_macs": 0.125, "high_rank": (), "dynamic": (), "basis": "table estimate",
        "ranges": (),
    }  # fmt: skip
    return Audit(placements=placements, **{**given, **changes})  # type: ignore[arg-type]


def tensor(name: str, worst: float) -> TensorRange:
    ratio = Sqnr(total_db=40.0, median_db=30.0, worst_db=worst, worst_channel=3)
    return TensorRange(name=name, module=name, op="linear", source="model.py:41", min=-1.0, max=2.0, kurtosis=3.0,
                       max_over_std=4.0, not_finite=0, sqnr={"w8a8": ratio})  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(["a", "b", "0", "1"]), max_size=4), max_size=120))
def test_every_op_is_drawn_once_in_its_order_whatever_the_modules(paths: list[list[str]]) -> None:
    placements = [op(".".join(path), source=f"m.py:{at}") for at, path in enumerate(paths)]
    drawn = [each for _, ops in rows(placements) for each in ops]
    assert drawn == placements


def test_a_row_is_the_outermost_module_that_fits_a_line() -> None:
    layers = [op(f"encoder.{layer}.{part}") for layer in range(3) for part in ("attention", "mlp") for _ in range(9)]
    assert [name for name, _ in rows([op("stem"), *layers])] == ["stem", "encoder.0", "encoder.1", "encoder.2"]
    assert [name for name, _ in rows(layers[:18])] == ["encoder.0"]


def test_500_ops_are_500_marks_that_say_what_they_are() -> None:
    generator = random.Random(0)
    placements = [op(f"layers.{at // 20}", generator.choice(VERDICTS), macs=at % 2) for at in range(500)]
    page = Reader(op_map(placements))
    marks = Counter(each["class"] for each in page.named("path"))
    keys = len(COLOURS)
    assert sum(marks.values()) == 500 + keys
    assert page.said.count("linear in layers.7 (model.py:41)") == 20
    assert len(page.named("figure")) == 25


def test_more_ops_than_a_page_holds_are_counted() -> None:
    assert "and 7 more ops" in Reader(op_map([op("a")] * (MOST_MARKS + 7))).said


def test_shares_are_of_the_whole_and_empty_ones_are_told_too() -> None:
    said = Reader(verdict_bar({"runs": 3.0, "falls back": 1.0}, "MACs")).said
    assert "runs 75.0%" in said
    assert "needs a rewrite 0.0%" in said
    assert "falls back 25.0%" in said


def test_ops_with_the_same_trouble_are_one_group_and_layers_one_place() -> None:
    layers = [op(f"layers.{at}.act", "falls back", op="gelu", reason="no table") for at in range(12)]
    found = groups([op("head"), *layers, op("stem", "needs a rewrite", macs=5, fix="pad_channels")])
    assert [(each.verdict, each.count) for each in found] == [("needs a rewrite", 1), ("falls back", 12), ("runs", 1)]
    assert found[1].alike == {"layers.*.act (model.py:41)": 12}
    assert len(found[1].places) == 12


def test_the_op_with_the_most_macs_is_told_first() -> None:
    found = groups([op("a", "falls back", op="add"), op("b", "falls back", op="matmul", macs=9)])
    assert [each.op for each in found] == ["matmul", "add"]


def test_facts_count_what_runs_and_name_what_is_too_deep() -> None:
    said = dict(facts(audited(op("a"), op("b", "falls back"), high_rank=("a (m.py:1)",) * 4)))
    assert said["coverage"] == "1 of 2 ops (50.0%), 90.0% of MACs"
    assert said["rank too high"] == "4: a (m.py:1); a (m.py:1); a (m.py:1); ..."
    assert said["sizes that vary"] == "none"
    assert said["known from"] == "table estimate"


def test_a_missed_gate_names_the_largest_parts() -> None:
    left = [op(f"l{at}", "falls back", op=name, reason="unknown", macs=at) for at, name in enumerate("abcd", 1)]
    said = missing(audited(*left), 95)
    assert said == ("coverage 90.0% of MACs is below 95 %: not on the NPU: d x1 (unknown); c x1 (unknown); "
                    "b x1 (unknown), and 1 more kinds of ops")  # fmt: skip


def test_the_tensor_with_the_worst_channel_comes_first() -> None:
    columns, found = range_table([tensor("good", 30.0), tensor("dead", 2.5)], ["w8a8", "w4a16"])
    assert [row[0] for row in found] == ["dead", "good"]
    assert found[0][-3:] == ["2.5 / 40.0", "-", "model.py:41"]
    assert len(columns) == len(found[0])


@pytest.mark.parametrize("npu", ["rk3588-npu", "ethos-u85", "apple-ane"])
def test_the_page_shows_every_part_and_runs_nothing(npu: str) -> None:
    audit = audited(op("a"), op("b", "falls back", op="topk", reason="refused"), ranges=(tensor("dead", 2.5),))
    text = audit_page(audit, npu_rules(npu))
    page = Reader(text)
    assert text == audit_page(audit, npu_rules(npu))
    assert not page.named("script")
    assert {each["id"] for each in page.named("section") if "id" in each} == {
        "coverage", "map", "rest", "ranges", "ops", "rules"
    }  # fmt: skip
    for said in ("1 of 2 ops", "topk", "refused", "dead", *npu_rules(npu).sources.values()):
        assert said in page.said


def test_what_a_model_says_stays_text() -> None:
    hostile = op(HOSTILE, "falls back", op=HOSTILE, source=HOSTILE, reason=HOSTILE, fix=HOSTILE)
    text = audit_page(audited(hostile, model=HOSTILE, ranges=(tensor(HOSTILE, 1.0),)), npu_rules("rk3588-npu"))
    page = Reader(text)
    assert not page.named("script")
    assert not page.named("img")
    assert HOSTILE in page.said


def test_without_samples_the_page_says_how_to_get_ranges() -> None:
    assert "--data DIR" in Reader(audit_page(audited(op("a")), npu_rules("rk3588-npu"))).said
