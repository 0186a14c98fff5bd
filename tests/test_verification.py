"""Inputs are fitted to what the model declares, and the synthetic ones stay where they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.processing import Array, Arrays
from edgekit.source import load
from edgekit.types import DType, DynamicDim, Shape, TensorSpec
from edgekit.verification import References, fit, make_references, synthetic_inputs

MODELS = Path(__file__).with_name("models.py")
BATCH = DynamicDim(name="batch", minimum=1, maximum=5)
SEQ = DynamicDim(name="ids.1", minimum=2, maximum=7)


def spec(name: str, shape: Shape, dtype: DType = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


INPUTS = (spec("x", ("batch", 4)), spec("ids", ("batch", "ids_1"), "int64"))


def sample(seed: int = 0, length: int = 6) -> Arrays:
    rng = np.random.default_rng(seed)
    return {"x": rng.uniform(2, 3, (1, 4)).astype(np.float32), "ids": rng.integers(10, 20, (1, length))}


def span(arrays: list[Array]) -> tuple[float, float]:
    return min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)


def test_a_fitting_sample_is_only_put_in_order() -> None:
    given = sample()
    fitted = fit(dict(reversed(given.items())), INPUTS, ())
    assert list(fitted) == ["x", "ids"]
    assert all(np.array_equal(fitted[name], given[name]) for name in given)


def test_a_fixed_batch_is_filled_by_repeating() -> None:
    x = np.array([[1, 2]], np.float32)
    assert fit({"x": x}, [spec("x", (3, 2))], ())["x"].tolist() == [[1, 2]] * 3
    pair = np.array([[1], [2]], np.float32)
    assert fit({"x": pair}, [spec("x", (5, 1))], ())["x"].tolist() == [[1], [1], [1], [2], [2]]


@pytest.mark.parametrize(("length", "fitted"), [(1, 2), (2, 2), (6, 6), (7, 7), (30, 7)])
def test_dynamic_sizes_are_brought_within_their_limits(length: int, fitted: int) -> None:
    ids = np.arange(length)[None]
    out = fit({"x": sample()["x"], "ids": ids}, INPUTS, [BATCH, SEQ])["ids"]
    assert out.shape == (1, fitted)
    assert out[0].tolist() == [index % length for index in range(fitted)]
    assert out.flags.c_contiguous


def test_a_least_batch_is_reached_by_repeating() -> None:
    least = DynamicDim(name="batch", minimum=3, maximum=5)
    assert {n: a.shape for n, a in fit(sample(), INPUTS, [least]).items()} == {"x": (3, 4), "ids": (3, 6)}


def test_random_inputs_stay_within_what_the_samples_hold() -> None:
    wide = (spec("x", (1, 1000)), spec("ids", (1, 1000), "int64"))
    samples = [{n: np.resize(a, (1, 1000)) for n, a in sample(seed).items()} for seed in range(4)]
    drawn, zeros, large = synthetic_inputs(wide, (), samples)
    low, high = span([s["x"] for s in samples])
    assert low <= drawn["x"].min() < drawn["x"].max() <= high
    assert drawn["x"].std() > (high - low) / 5
    assert not zeros["x"].any()
    assert not zeros["ids"].any()
    assert large["x"].max() > high
    assert large["x"].max() <= 10 * high
    assert large["x"].dtype == np.float32


def test_integers_stay_within_the_values_seen() -> None:
    samples = [sample(seed, length=50) for seed in range(4)]
    low, high = span([s["ids"] for s in samples])
    drawn, _, large = synthetic_inputs(INPUTS, (), samples)
    for feeds in (drawn, large):
        assert low <= feeds["ids"].min() <= feeds["ids"].max() <= high
        assert feeds["ids"].dtype == np.int64
    assert len(np.unique(drawn["ids"])) > 3


@pytest.mark.parametrize("value", [2**53 + 1, 2**62 + 1, 2**63 - 1, -(2**63)])
def test_integers_that_no_float_holds_stay_exact(value: int) -> None:
    drawn, zeros = synthetic_inputs([spec("ids", (1, 3), "int64")], (), [{"ids": np.full((1, 3), value)}])
    assert drawn["ids"].tolist() == [[value] * 3]
    assert zeros["ids"].tolist() == [[0] * 3]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "float16", "float64"])
def test_every_dtype_is_kept(dtype: DType) -> None:
    given = np.array([[0, 1, 1]]).astype(dtype)
    assert all(f["x"].dtype == given.dtype for f in synthetic_inputs([spec("x", (1, 3), dtype)], (), [{"x": given}]))


def test_large_half_precision_inputs_stay_finite() -> None:
    given = np.array([[-30000, 30000, 1]], np.float16)
    assert all(np.isfinite(f["x"]).all() for f in synthetic_inputs([spec("x", (1, 3), "float16")], (), [{"x": given}]))


def test_integers_alone_have_no_large_variant() -> None:
    made = synthetic_inputs([spec("ids", (1, 6), "int64")], (), [{"ids": sample()["ids"]}])
    assert len(made) == 2


def test_the_ends_of_every_dynamic_size_are_there() -> None:
    made = synthetic_inputs(INPUTS, [BATCH, SEQ], [sample()])
    shapes = [(f["x"].shape, f["ids"].shape) for f in made]
    assert shapes[:3] == [((1, 4), (1, 6))] * 3
    assert shapes[3:] == [((1, 4), (1, 6)), ((5, 4), (5, 6)), ((1, 4), (1, 2)), ((1, 4), (1, 7))]
    low, high = span([sample()["ids"]])
    assert all(low <= f["ids"].min() <= f["ids"].max() <= high for f in made[3:])


def test_state_keeps_what_the_model_computed() -> None:
    samples = [sample(1), sample(2)]
    drawn, zeros = synthetic_inputs(INPUTS, (), samples, state=["x"])  # no input is left that could leave its range
    assert np.array_equal(drawn["x"], samples[0]["x"])
    assert not np.array_equal(drawn["ids"], samples[0]["ids"])
    assert not zeros["x"].any()
    resized = synthetic_inputs(INPUTS, [SEQ], samples, state=["x"])[2:]
    assert all(np.array_equal(feeds["x"], samples[0]["x"]) for feeds in resized)


def test_synthetic_inputs_are_the_same_each_time() -> None:
    first, second = (synthetic_inputs(INPUTS, [BATCH], [sample(1), sample(2)]) for _ in range(2))
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


def test_references_hold_the_answers_of_the_model_itself() -> None:
    model = load(f"{MODELS}:two_inputs", dynamic=["batch=1:3", "seq=1:9"])
    rng = np.random.default_rng(0)
    samples = [
        {"offset": rng.normal(size=(1, 8)).astype(np.float32), "tokens": rng.integers(0, 50, (1, length))}
        for length in (4, 20)
    ]
    references = make_references(model, model.inputs, model.dynamic, samples)
    assert isinstance(references, References)
    assert [feeds["tokens"].shape for feeds, _ in references.real] == [(1, 4), (1, 9)]
    assert {feeds["tokens"].shape for feeds, _ in references.synthetic} == {(1, 4), (3, 4), (1, 1), (1, 9)}
    for feeds, expected in (*references.real, *references.synthetic):
        assert list(feeds) == ["tokens", "offset"]
        answers = model(feeds)
        assert answers.keys() == expected.keys() == {"mean", "mixed"}
        assert all(np.array_equal(answers[name], expected[name]) for name in expected)


def test_references_of_a_fixed_batch_repeat_the_sample() -> None:
    model = load(f"{MODELS}:mlp", inputs=["x:float32:3x16"])
    real = make_references(model, model.inputs, (), [{"x": np.ones((1, 16), np.float32)}]).real
    assert [(feeds["x"].shape, expected["output"].shape) for feeds, expected in real] == [((3, 16), (3, 4))]
