"""The figures of parity against hand-computed float64 values, and every gate with its own sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.errors import InvalidInput
from edgekit.parity import CONFIDENT, TOLERANCES, Tolerance, compare, cosine, sqnr_db, with_gates
from edgekit.processing import Array, Arrays

FREE = Tolerance()
FLOATS = st.floats(-1e6, 1e6, width=32)
VECTORS = arrays(np.float32, st.integers(1, 12), elements=FLOATS)
SMALL_NORMAL = st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


def f(*values: float) -> Array:
    return np.array(values, np.float32)


def y(*values: float) -> Arrays:
    return {"y": f(*values)[None]}


@pytest.mark.parametrize(
    ("reference", "actual", "db"),
    [
        (f(3, 4), f(3, 5), 10 * np.log10(25.0)),
        (f(10, 0), f(9, 0), 20.0),
        (f(1, 1), f(2, 2), 0.0),
        (f(1, 0), f(11, 0), -20.0),
        (f(3, 4), f(3, 4), 200.0),
        (f(0, 0), f(0, 0), 200.0),
        (f(0, 0), f(0, 1e-30), -200.0),
        (f(3, np.nan, 4), f(3, 7, 5), 10 * np.log10(25.0)),
        (f(3, np.inf, 4), f(3, np.nan, 5), 10 * np.log10(25.0)),
        (f(3, 4), f(3, np.nan), -200.0),
        (f(3, 4), f(3, -np.inf), -200.0),
        (f(np.nan), f(1), 200.0),
        (f(), f(), 200.0),
        (np.array([7, 24]), np.array([7, 25]), 10 * np.log10(625.0)),
        (np.array([True, True]), np.array([True, False]), 10 * np.log10(2.0)),
        (np.float64([1e150]), np.float64([1.0]), 0.0),
        (np.float64([1.0]), np.float64([1 + 1e-12]), 240.0),
    ],
)
def test_sqnr_is_signal_power_over_error_power(reference: Array, actual: Array, db: float) -> None:
    assert sqnr_db(reference, actual) == pytest.approx(np.clip(db, -200, 200), abs=1e-9)


def test_float16_tensors_are_judged_in_float64() -> None:
    reference = np.full(1000, 300, np.float16)  # its square overflows float16
    assert sqnr_db(reference, reference + np.float16(3)) == pytest.approx(40, abs=1e-9)
    assert cosine(reference, reference) == pytest.approx(1, abs=1e-12)


@given(VECTORS, st.integers(-20, 20))
def test_sqnr_and_cosine_do_not_change_with_a_common_scale(reference: Array, power: int) -> None:
    wide = reference.astype(np.float64)
    actual, scale = np.rint(wide), 2.0**power
    assert sqnr_db(wide * scale, actual * scale) == pytest.approx(sqnr_db(wide, actual), abs=1e-9)
    assert cosine(wide * scale, actual * scale) == pytest.approx(cosine(wide, actual), abs=1e-9)


@given(arrays(np.float32, (2, 6), elements=SMALL_NORMAL))
def test_figures_agree_with_plain_sums(pair: Array) -> None:
    r, a = ([float(x) for x in row] for row in pair)
    signal, noise = sum(x * x for x in r), sum((x - z) ** 2 for x, z in zip(r, a, strict=True))
    if signal and noise:
        assert sqnr_db(*pair) == pytest.approx(10 * np.log10(signal / noise), abs=1e-9)
    dot, power = sum(x * z for x, z in zip(r, a, strict=True)), sum(z * z for z in a)
    if signal and power:
        assert cosine(*pair) == pytest.approx(dot / (signal * power) ** 0.5, abs=1e-12)
        assert -1 <= cosine(*pair) <= 1


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        (f(1, 0), f(0, 2), 0.0),
        (f(1, 2), f(-2, -4), -1.0),
        (f(3, 4), f(4, 3), 24 / 25),
        (f(0, 0), f(0, 0), 1.0),
        (f(0, 0), f(1, 0), 0.0),
        (f(1, 0), f(0, 0), 0.0),
        (f(1, 0), f(np.nan, 0), 0.0),
        (f(1, 0), f(np.inf, 0), 0.0),
        (f(), f(), 1.0),
    ],
)
def test_cosine_of_simple_vectors(a: Array, b: Array, value: float) -> None:
    assert cosine(a, b) == pytest.approx(value, abs=1e-12)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=FLOATS),
    st.sampled_from([*TOLERANCES.values(), FREE]),
)
def test_equal_outputs_pass_every_gate(vectors: Array, tolerance: Tolerance) -> None:
    samples = [{"y": v[None]} for v in vectors]
    parity = compare(samples, samples, tolerance, synthetic=[(s, s) for s in samples], logits="y")
    assert parity.ok, parity.misses
    assert (parity.max_abs, parity.max_rel, parity.sqnr_db, parity.misses) == (0, 0, 200, ())
    assert parity.cosine_min == pytest.approx(1, abs=1e-9)
    assert (parity.samples, parity.synthetic_samples) == (len(samples), len(samples))


def test_the_figures_of_a_report_are_over_all_samples() -> None:
    parity = compare([y(3, 4), y(0, 10)], [y(3, 5), y(0, 8)], FREE)
    assert parity.max_abs == 2
    assert parity.max_rel == pytest.approx(0.2)
    assert parity.sqnr_db == pytest.approx(10 * np.log10(125 / 5))
    assert parity.cosine_min == pytest.approx((9 + 20) / (5 * 34**0.5))  # the worst sample


def test_the_worst_output_is_named() -> None:
    reference = {"good": f(1, 2), "bad": f(1, 2), "fair": f(1, 2)}
    answer = {"good": f(1, 2), "bad": f(2, 1), "fair": f(1, 2.01)}
    parity = compare([reference], [answer], TOLERANCES["fp32"])
    assert parity.worst_output == "bad"
    assert [o.name for o in parity.outputs] == ["good", "bad", "fair"]
    assert parity.sqnr_db == min(o.sqnr_db for o in parity.outputs)
    assert all("worst output 'bad'" in miss for miss in parity.misses)


def test_every_output_must_pass_every_gate() -> None:
    """The output with the least SQNR is only scaled; another one points elsewhere."""
    reference = {"scaled": f(1, 1), "turned": f(10, 10)}
    answer = {"scaled": f(2, 2), "turned": f(16, 3)}
    tolerance = Tolerance(cosine_min=0.9, sqnr_db_min=-1)
    parity = compare([reference], [answer], tolerance)
    assert parity.worst_output == "scaled"
    assert parity.cosine_min is not None
    assert parity.cosine_min < 0.9
    assert not parity.ok
    assert any("cosine" in miss and "'turned'" in miss for miss in parity.misses)
    edge = compare([y(1)], [y(1)], tolerance, synthetic=[(reference, answer)])
    assert any("cosine on synthetic inputs" in miss for miss in edge.misses)


@pytest.mark.parametrize(
    ("tolerance", "words"),
    [
        (Tolerance(cosine_min=0.99), ["cosine is 0.96", "gate is 0.99"]),
        (Tolerance(sqnr_db_min=12), ["SQNR (dB) is 10.97", "gate is 12.00"]),
        (Tolerance(top1_agreement_min=0.5), ["top-1 agreement is 0.000", "gate is 0.500"]),
    ],
)
def test_each_missed_gate_has_its_own_sentence(tolerance: Tolerance, words: list[str]) -> None:
    parity = compare([y(3, 4)], [y(4, 3)], tolerance, logits="y")
    assert not parity.ok
    assert len(parity.misses) == 1
    assert all(word in parity.misses[0] for word in [*words, "worst output 'y'"])


def test_a_figure_just_at_the_gate_passes() -> None:
    assert compare([y(10, 0)], [y(9, 0)], Tolerance(sqnr_db_min=20.0, cosine_min=1.0)).ok


@pytest.mark.parametrize("gated", [True, False])
def test_synthetic_samples_are_gated_only_where_the_tolerance_says_so(gated: bool) -> None:
    tolerance = Tolerance(sqnr_db_min=30, synthetic=gated)
    parity = compare([y(1, 2)], [y(1, 2)], tolerance, synthetic=[(y(1, 2), y(2, 1))])
    assert parity.ok is not gated
    assert parity.sqnr_db == 200  # figures are over the real samples
    assert any("SQNR (dB) on synthetic inputs" in miss for miss in parity.misses) is gated


@pytest.mark.parametrize("synthetic", [True, False])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"z": f(1, 2)}, ["outputs are z", "PyTorch has y"]),
        ({}, ["PyTorch has y"]),
        ({"y": f(1, 2), "z": f(1)}, ["outputs are y, z"]),
        ({"y": f(1, 2, 3)[None]}, ["output 'y' has shape [1, 3]", "PyTorch [1, 2]"]),
        ({"y": f(1, 2)}, ["output 'y' has shape [2]"]),
        (y(1, np.nan), ["output 'y' has NaN or Inf where PyTorch has none"]),
        (y(np.inf, 2), ["output 'y' has NaN or Inf"]),
    ],
)
def test_a_difference_in_form_fails_every_tolerance(answer: Arrays, words: list[str], synthetic: bool) -> None:
    pairs: list[tuple[Arrays, Arrays]] = [(y(1, 2), answer)]
    real = [(y(1, 2), y(1, 2))]
    if synthetic:
        parity = compare([real[0][0]], [real[0][1]], Tolerance(synthetic=False), synthetic=pairs)
    else:
        parity = compare([pairs[0][0]], [answer], FREE)
    assert not parity.ok
    if synthetic:
        assert parity.sqnr_db == 200  # of the real samples
    else:
        assert (parity.max_abs, parity.sqnr_db, parity.cosine_min, parity.outputs) == (None, None, None, ())
    assert all(word in parity.misses[0] for word in [*words, "synthetic sample 0" if synthetic else "sample 0"])


def test_made_up_inputs_that_the_runtime_cannot_compute_with_are_a_miss_beside_the_figures() -> None:
    refused = InvalidInput("a division by zero")
    parity = compare([y(1, 2)], [y(1, 2)], FREE, synthetic=[(y(0, 0), refused), (y(1, 2), y(1, 2))])
    assert (parity.ok, parity.sqnr_db) == (False, 200)
    assert parity.misses == ("synthetic sample 0: a division by zero",)


def test_where_pytorch_itself_is_not_finite_anything_goes() -> None:
    for answer in (1.0, np.nan, -np.inf):
        parity = compare([y(3, np.nan, np.inf)], [y(3, answer, answer)], TOLERANCES["fp32"])
        assert parity.ok, parity.misses
        assert parity.max_abs == 0


def test_many_misses_are_counted_instead_of_listed() -> None:
    parity = compare([y(1)] * 9, [y(1, 2)] * 9, FREE)
    assert len(parity.misses) == 6
    assert parity.misses[-1] == "and 4 more"
    assert parity.worst_output == "y"


def test_a_missing_sample_is_no_parity() -> None:
    with pytest.raises(ValueError, match="argument"):
        compare([y(1), y(2)], [y(1)], FREE)


def logits(p: float, top: int) -> Arrays:
    """Three classes, of which `top` has probability `p`."""
    rest = (1 - p) / 2
    return y(*(np.log(p if i == top else rest) for i in range(3)))


def test_top1_counts_only_where_pytorch_is_confident() -> None:
    expected = [logits(0.9, 0), logits(0.9, 1), logits(CONFIDENT - 0.01, 2), logits(CONFIDENT + 0.01, 2)]
    actual: Any = [logits(0.5, 0), logits(0.5, 0), logits(0.5, 0), logits(0.5, 2)]
    parity = compare(expected, actual, FREE, logits="y")
    assert parity.top1_samples == 3
    assert parity.top1_agreement == pytest.approx(2 / 3)


def test_top1_is_none_where_pytorch_is_never_confident() -> None:
    unsure = [logits(0.35, 0)]
    parity = compare(unsure, [logits(0.9, 1)], Tolerance(top1_agreement_min=1.0), logits="y")
    assert (parity.top1_agreement, parity.top1_samples, parity.ok) == (None, 0, True)


def test_top1_is_not_judged_without_logits() -> None:
    assert compare([logits(0.9, 0)], [logits(0.9, 1)], FREE).top1_samples is None


def test_a_constant_answer_beside_a_large_offset_is_a_miss() -> None:
    """SQNR counts the offset as signal: it alone would call this artifact good."""
    expected = [y(300.0, 300.001), y(300.002, 300.0), y(300.001, 300.002)]
    parity = compare(expected, [y(300.001, 300.001)] * 3, TOLERANCES["int8"])
    assert parity.sqnr_db is not None
    assert parity.sqnr_db > 90
    assert not parity.ok
    assert parity.misses == ("output 'y' is the same for every sample, PyTorch's is not",)


def test_the_angle_of_rounding_noise_is_not_judged() -> None:
    expected, actual = [y(1.0, 2.0), y(1e-8, -1e-8)], [y(1.0, 2.0), y(-1e-8, 1e-8)]
    assert compare(expected, actual, TOLERANCES["fp32"]).cosine_min == pytest.approx(1.0)


@pytest.mark.parametrize("gate", [float("nan"), 2.0, float("inf")])
def test_a_gate_that_is_no_cosine_is_refused(gate: float) -> None:
    with pytest.raises(InvalidInput, match="least cosine must be between -1 and 1"):
        with_gates(TOLERANCES["fp32"], gate, None)


@pytest.mark.parametrize("gate", [float("nan"), 201.0])
def test_a_gate_that_is_no_sqnr_is_refused(gate: float) -> None:
    with pytest.raises(InvalidInput, match="least SQNR must be between"):
        with_gates(TOLERANCES["fp32"], None, gate)
