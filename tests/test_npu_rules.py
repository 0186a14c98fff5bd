"""Files of rules are parsed strictly, and what limits are about is measured on plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import registry
from edgekit.errors import InvalidInput, UnknownName
from edgekit.npu.auditing.placement import judge
from edgekit.npu.measures import MEASURES, OpCall, Operand
from edgekit.npu.rules import NpuRules, npu_ids, npu_rules, parse_rules, rules_of
from edgekit.profile import find_device

GOOD = """
schema = "edgekit.npu/1"
id = "toy"
title = "Toy"
dtypes = ["int8", "float16"]
max_rank = 4
batch_one = true
static_shapes = true

[sources]
book = "a page that a reader can find"

[evidence]
dtypes = "book"
max_rank = "book"
batch_one = "book"
static_shapes = "book"

[[ops]]
ops = ["conv2d"]
limits = { stride = [1, 3], kernel_height = [1, 64] }
fix = "smaller strides"
source = "book"

[[ops]]
ops = ["conv2d"]
dtypes = ["float16"]
source = "book"

[[ops]]
ops = ["gelu"]
refused = "it has no error function"
fix = "gelu_tanh"
source = "book"

[[ops]]
ops = ["add"]
source = "book"
"""
FLOAT = Operand(shape=(1, 8, 16, 16), dtype="float32")
TOY = parse_rules(GOOD, "toy")


def conv(stride: int = 1, high: int = 3, **facts: Any) -> OpCall:
    weight = Operand(shape=(8, 8, high, 3), dtype="float32", constant=True)
    arguments = {"input": FLOAT, "weight": weight, "stride": (stride, stride), "groups": 1}
    return OpCall(op="conv2d", arguments=arguments, outputs=(FLOAT,), **facts)


def refusal(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse_rules(text, "toy.toml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"edgekit.npu/1"', '"edgekit.npu/2"', "does not follow edgekit.npu/1"),
        ("max_rank = 4", "max_rank = 0", "max_rank must be 1 or more, not 0"),
        ("max_rank = 4", "highest = 4", "unknown field `highest`"),
        ("max_rank = 4", 'max_rank = "four"', "Expected `int | null`"),
        ('dtypes = ["int8", "float16"]', 'dtypes = ["int7"]', "Invalid enum value 'int7'"),
        ('dtypes = ["int8", "float16"]', "dtypes = []", "dtypes is empty"),
        ("stride = [1, 3]", "stride = [3, 1]", "limits 'stride' to [3.0, 1.0]: it needs two finite numbers"),
        ("stride = [1, 3]", "stride = [1, inf]", "it needs two finite numbers"),
        ("stride = [1, 3]", "stride = [nan, 1]", "it needs two finite numbers"),
        ("stride = [1, 3]", "stride = [1]", "length 2"),
        ("stride = [1, 3]", "strides = [1, 3]", "limits 'strides', which cannot be measured: take one of"),
        ('ops = ["add"]', "ops = []", "ops[3] names no op"),
        ('source = "book"', 'source = "film"', "cites source 'film', which is not in its [sources] table"),
        ('max_rank = "book"', "", "nothing vouches for max_rank"),
        ('max_rank = "book"', 'max_rank = "book"\nlayout = "book"', "vouches for layout, which the file does not give"),
        ('id = "toy"', "id = toy", "is not valid TOML"),
        ('id = "toy"', "", "missing required field `id`"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(old: str, new: str, problem: str) -> None:
    assert old in GOOD
    message = refusal(GOOD.replace(old, new))
    assert "NPU rules 'toy.toml'" in message
    assert problem in message


@given(st.text(max_size=200))
def test_any_text_is_rules_or_an_error_that_names_the_file(text: str) -> None:
    assert "NPU rules 'toy.toml'" in refusal(text)


def test_deep_nesting_is_refused() -> None:
    assert "NPU rules 'toy.toml'" in refusal("a = " + "[" * 5000 + "]" * 5000)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot read NPU rules"), (b"\xff\xfe", "are not UTF-8 text")],
    ids=["gone", "bytes"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=problem):
        npu_rules(str(path))


def test_own_rules_are_found_by_their_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert npu_rules(str(path)) == TOY


def test_an_unknown_npu_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'ethos-u85'"):
        npu_rules("ethos-u86")


def test_a_device_without_an_npu_is_answered_with_those_that_have_one() -> None:
    with pytest.raises(
        InvalidInput, match=r"'raspberrypi5' has no NPU whose rules are known; these have: .*ethos-u85-256"
    ):
        rules_of(find_device("raspberrypi5"))


@pytest.mark.parametrize("npu", npu_ids())
def test_rules_survive_json_and_their_file_has_their_name(npu: str) -> None:
    assert NpuRules.from_json(npu_rules(npu).to_json()) == npu_rules(npu)
    assert npu_rules(npu).id == npu


def test_an_op_that_keeps_to_its_limits_runs() -> None:
    assert judge(conv(), TOY).verdict == "runs"


def test_a_limit_that_is_missed_is_said_with_its_measure_and_the_fix() -> None:
    found = judge(conv(stride=4, high=65), TOY)
    assert found.verdict == "falls back"
    assert found.reason == "it works on int8, and float16 run"  # the nearest rule misses one thing, the first two
    near = judge(conv(stride=4), TOY)
    assert near.reason == "largest step of its window: 4, and 1 to 3 run"
    assert near.fix == "smaller strides"


def test_the_first_rule_that_holds_decides() -> None:
    assert judge(conv(stride=4), TOY, "float16").verdict == "runs"


def test_a_refusal_that_a_rewrite_mends_needs_a_rewrite() -> None:
    found = judge(OpCall(op="gelu", arguments={"self": FLOAT}, outputs=(FLOAT,)), TOY)
    assert (found.verdict, found.reason, found.fix) == ("needs a rewrite", "it has no error function", "gelu_tanh")


def test_an_op_that_no_rule_names_falls_back() -> None:
    found = judge(OpCall(op="cos", arguments={"self": FLOAT}, outputs=(FLOAT,)), TOY)
    assert (found.verdict, found.reason) == ("falls back", "nothing says that Toy runs it")


@pytest.mark.parametrize(
    ("shape", "verdict", "reason"),
    [
        ((1, 2, 3, 4, 5), "needs a rewrite", "a tensor has 5 dimensions, and it takes 4"),
        ((2, 8, 4, 4), "falls back", "its batch is 2, and it takes 1"),
    ],
)
def test_what_holds_for_every_op_is_asked_too(shape: tuple[int, ...], verdict: str, reason: str) -> None:
    tensor = Operand(shape=shape, dtype="float32")
    found = judge(OpCall(op="add", arguments={"self": tensor, "other": tensor}, outputs=(tensor,)), TOY)
    assert (found.verdict, found.reason) == (verdict, reason)


def test_sizes_that_vary_need_to_be_fixed() -> None:
    assert judge(conv(varies=True), TOY).fix == "static_shapes"


def test_whole_numbers_are_not_what_floats_are_brought_to() -> None:
    whole = Operand(shape=(1, 8), dtype="int64")
    found = judge(OpCall(op="add", arguments={"self": whole, "other": whole}, outputs=(whole,)), TOY)
    assert found.reason == "it works on int64, and int8, float16 run"


def measured(
    name: str, op: str, shape: tuple[int, ...], out: tuple[int, ...] | None = None, **arguments: Any
) -> float | None:
    tensor = Operand(shape=shape, dtype="float32")
    call = OpCall(
        op=op, arguments={"self": tensor, **arguments}, outputs=(Operand(shape=out or shape, dtype="float32"),)
    )
    return MEASURES[name](call)


@pytest.mark.parametrize(
    ("name", "op", "shape", "arguments", "value"),
    [
        ("rank", "relu", (1, 2, 3), {}, 3),
        ("batch", "relu", (2, 3), {}, 2),
        ("batch", "relu", (3,), {}, None),
        ("largest_axis", "relu", (2, 70, 3), {}, 70),
        ("kernel_height", "max_pool2d", (1, 2, 9, 9), {"kernel_size": (3,)}, 3),
        ("kernel_area", "max_pool2d", (1, 2, 9, 9), {"kernel_size": (3, 5)}, 15),
        ("stride", "max_pool2d", (1, 2, 9, 9), {"kernel_size": (3, 5), "stride": ()}, 5),
        ("stride", "softmax", (1, 2), {"dim": -1}, None),
        ("axis_from_end", "softmax", (1, 2, 3), {"dim": 1}, 1),
        ("axis_from_end", "softmax", (1, 2, 3), {"dim": -1}, 0),
        ("reduced", "mean", (1, 2, 3, 4), {"dim": (2, -1)}, 12),
        ("reduced", "mean", (2, 3), {"dim": None}, 6),
        ("last_kept", "mean", (1, 2, 3), {"dim": (1,)}, 1),
        ("channels_kept", "mean", (1, 2, 3, 4), {"dim": (1, 2)}, 0),
        ("channels_kept", "mean", (1, 2, 3), {"dim": (1,)}, None),
        ("dims_kept", "mean", (1, 2), {"keepdim": True}, 1),
        ("flattest", "mean", (2, 3, 4, 5), {}, 3),
        ("flattest", "mean", (4, 5), {}, 1),
        ("leading", "mean", (2, 3, 4, 5, 6), {}, 6),
        ("leading", "mean", (4, 5), {}, 1),
        ("bulk", "permute", (1, 7, 2, 3), {}, 7),
        ("low", "clamp", (1,), {"min": -1, "max": None}, -1),
        ("bounded", "clamp", (1,), {"min": -1, "max": None}, 0),
        ("step", "slice", (4,), {"dim": 0, "step": 2}, 2),
        ("exponent", "pow", (4,), {"exponent": 2}, 2),
        ("truth_mask", "scaled_dot_product_attention", (4,), {"attn_mask": Operand(shape=(4,), dtype="bool")}, 1),
        ("truth_mask", "scaled_dot_product_attention", (4,), {"attn_mask": None}, 0),
        ("mixes_kinds", "mul", (4,), {"other": Operand(shape=(4,), dtype="bool")}, 1),
        ("weight_constant", "mul", (4,), {"other": Operand(shape=(4,), dtype="float32", constant=True)}, 1),
        ("align_corners", "upsample_bilinear2d", (1, 1, 2, 2), {"align_corners": False}, 0),
        ("counts_padding", "avg_pool2d", (1, 1, 2, 2), {"count_include_pad": True, "padding": (0,)}, None),
        ("counts_padding", "avg_pool2d", (1, 1, 2, 2), {"count_include_pad": True, "padding": (1,)}, 1),
    ],
)  # fmt: skip
def test_measures(name: str, op: str, shape: tuple[int, ...], arguments: dict[str, Any], value: float | None) -> None:
    assert measured(name, op, shape, **arguments) == value


@pytest.mark.parametrize(
    ("name", "op", "shape", "out", "value"),
    [
        ("scale", "upsample_nearest2d", (1, 2, 4, 5), (1, 2, 8, 15), 3),
        ("evenly", "adaptive_avg_pool2d", (1, 2, 6, 6), (1, 2, 3, 2), 1),
        ("evenly", "adaptive_avg_pool2d", (1, 2, 6, 6), (1, 2, 4, 2), 0),
        ("result_area", "adaptive_avg_pool2d", (1, 2, 6, 6), (1, 2, 4, 2), 8),
    ],
)
def test_measures_of_results(name: str, op: str, shape: tuple[int, ...], out: tuple[int, ...], value: float) -> None:
    assert measured(name, op, shape, out) == value


@pytest.mark.parametrize(
    ("before", "after", "kind", "real"),
    [("int64", "float32", 1, 1), ("int64", "bool", 1, 0), ("int64", "int32", 0, 0), ("float32", "float16", 0, 0)],
)
def test_casts_are_told_apart(before: str, after: str, kind: float, real: float) -> None:
    call = OpCall(
        op="to", arguments={"self": Operand(shape=(1,), dtype=before)}, outputs=(Operand(shape=(1,), dtype=after),)
    )
    assert (MEASURES["casts_kind"](call), MEASURES["casts_real"](call)) == (kind, real)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_says_what_it_measures_and_copes_with_any_op(name: str) -> None:
    assert MEASURES[name].__doc__
    scalar = Operand(shape=(), dtype="int64")
    for arguments in ({}, {"self": scalar}, {"self": FLOAT}, {"self": None, "dim": None, "stride": None}):
        outputs = (scalar,)
        value = MEASURES[name](OpCall(op="relu", arguments=arguments, outputs=outputs))
        assert value is None or isinstance(value, int | float)


@pytest.mark.parametrize("npu", npu_ids())
def test_every_fix_that_is_a_name_is_that_of_a_rewrite_or_an_adaptation(npu: str) -> None:
    known = {*registry.names("edgekit.npu.rewrites"), *registry.names("edgekit.npu.adaptations")}
    named = {rule.fix for rule in npu_rules(npu).ops if rule.fix and " " not in rule.fix}
    assert sorted(named - known) == []
