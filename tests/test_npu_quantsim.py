"""Schemes, their grids, the ranges of tensors and simulated models, against float64 computed step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import InvalidInput, UnknownName
from edgekit.npu.numbers._replay import Replay
from edgekit.npu.numbers._rounding import channel_axes, rounded_nodes
from edgekit.npu.numbers.moments import Moments
from edgekit.npu.numbers.noise import Powers
from edgekit.npu.numbers.quantsim import model_sqnr, simulate
from edgekit.npu.numbers.ranges import TensorRange, tensor_ranges
from edgekit.npu.numbers.scheme import SCHEMES, Grid, Scheme, activation_grid, rounded_weight, scheme
from edgekit.processing import Arrays
from edgekit.source import load

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
VALUES = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=6), elements=finite)


@given(finite, finite, st.sampled_from([4, 8, 16]))
def test_a_grid_holds_its_range_and_zero(one: float, other: float, bits: int) -> None:
    low, high = min(one, other), max(one, other)
    grid = activation_grid(low, high, bits)
    assert grid.last - grid.first == (2**bits - 1 if bits < 16 else 2**bits - 2)
    assert grid.first <= grid.zero_point <= grid.last
    assert grid.zero_point == 0 or bits < 16
    points = torch.linspace(low, high, 33, dtype=torch.float64)
    off = (grid.round(points) - points).abs().max()
    assert off <= 0.5 * grid.scale * (1 + 1e-9)
    assert grid.round(torch.zeros(1, dtype=torch.float64)).item() == 0
    assert torch.equal(grid.round(grid.round(points)), grid.round(points))


def test_a_grid_is_no_wider_than_its_range_needs() -> None:
    assert activation_grid(0.0, 6.0, 8).scale == pytest.approx(6 / 255)
    assert activation_grid(-1.0, 1.0, 8).scale == pytest.approx(1 / 127)
    assert activation_grid(-3.0, 1.0, 16).scale == pytest.approx(3 / 32767)
    assert activation_grid(2.0, 4.0, 8).scale == pytest.approx(4 / 255)


def test_constants_nan_and_infinities_on_a_grid() -> None:
    assert activation_grid(0.0, 0.0, 8).round(torch.zeros(3)).tolist() == [0, 0, 0]
    assert activation_grid(7.5, 7.5, 8).round(torch.tensor([7.5])).item() == pytest.approx(7.5)
    found = activation_grid(-1.0, 1.0, 8).round(torch.tensor([math.nan, math.inf, -math.inf]))
    assert found[0].isnan()
    assert found[1:].tolist() == pytest.approx([128 / 127, -1.0], abs=2 / 127)
    with pytest.raises(InvalidInput, match=r"from nan to 1\.0 has no grid"):
        activation_grid(math.nan, 1.0, 8)


@given(VALUES.filter(lambda a: a.ndim > 1), st.sampled_from([4, 8]), st.integers(0, 2))
def test_each_channel_of_a_weight_has_its_own_grid(values: np.ndarray, bits: int, axis: int) -> None:
    axis %= values.ndim
    found = np.moveaxis(rounded_weight(torch.from_numpy(values), bits, axis).numpy(), axis, 0)
    last = 2 ** (bits - 1) - 1
    for channel, rounded in zip(np.moveaxis(values, axis, 0), found, strict=True):
        scale = np.abs(channel).max() / last or 1.0
        np.testing.assert_allclose(rounded, np.rint(channel / scale) * scale, rtol=1e-12, atol=1e-12 * scale)


def test_schemes_are_known_by_name() -> None:
    assert [(s.weight_bits, s.activation_bits) for s in SCHEMES.values()] == [(8, 8), (8, 16), (4, 16)]
    with pytest.raises(UnknownName, match=r"no scheme is called 'w8a9'. Did you mean 'w8a8'"):
        scheme("w8a9")


@given(VALUES, VALUES)
def test_moments_of_parts_are_those_of_the_whole(one: np.ndarray, other: np.ndarray) -> None:
    found = Moments.of(torch.from_numpy(one)) + Moments.of(torch.from_numpy(other))
    whole = np.concatenate([one.ravel(), other.ravel()]).astype(np.longdouble)
    apart = whole - whole.mean()
    assert (found.count, found.low, found.high) == (whole.size, float(whole.min()), float(whole.max()))
    scale = float(np.abs(whole).max())
    for power, sum_found in ((2, found.second), (3, found.third), (4, found.fourth)):
        assert sum_found == pytest.approx(float((apart**power).sum()), abs=1e-9 * scale**power * whole.size + 1e-300)


def test_shapes_of_distributions() -> None:
    normal = Moments.of(torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert normal.kurtosis == pytest.approx(3, abs=0.1)
    two = Moments.of(torch.tensor([-1.0, 1.0]))
    assert (two.kurtosis, two.max_over_std) == (1.0, 1.0)
    for constant in (Moments.of(torch.full((5,), 0.1)), Moments.of(torch.zeros(0))):
        assert (constant.kurtosis, constant.max_over_std) == (None, None)
    broken = Moments.of(torch.tensor([math.nan, -math.inf, 2.0])) + Moments.of(torch.tensor([math.inf]))
    assert (broken.not_finite, broken.count, broken.low, broken.high) == (3, 1, 2.0, 2.0)


@given(hnp.arrays(np.float64, (3, 4), elements=finite), hnp.arrays(np.float64, (3, 4), elements=finite))
def test_ratios_of_channels(exact: np.ndarray, other: np.ndarray) -> None:
    found = Powers.of(torch.from_numpy(exact), torch.from_numpy(other), 1).sqnr()
    signal, noise = (exact**2).sum(0), ((exact - other) ** 2).sum(0)

    def ratio(s: float, n: float) -> float:
        if n == 0:
            return 200.0
        return float(np.clip(10 * np.log10(s / n), -200, 200)) if s else -200.0

    each = [ratio(s, n) for s, n in zip(signal, noise, strict=True) if s or n]
    assert found.total_db == pytest.approx(ratio(signal.sum(), noise.sum()), abs=1e-6)
    assert found.worst_db == pytest.approx(min(each, default=found.total_db), abs=1e-6)
    assert found.median_db == pytest.approx(float(np.median(each)) if each else found.total_db, abs=1e-6)


def test_the_total_hides_a_dead_channel() -> None:
    values = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 3] *= 1000
    rounded = activation_grid(float(values.min()), float(values.max()), 8).round(values)
    found = Powers.of(values, rounded, 1).sqnr()
    assert found.total_db > 30
    assert found.median_db == found.worst_db == 0
    assert found.worst_channel != 3


def test_infinite_values_count_for_nothing_and_new_ones_for_all() -> None:
    exact = torch.tensor([[1.0, -math.inf], [2.0, 1.0]])
    assert Powers.of(exact, exact.clamp(-10, 10), 1).sqnr().total_db == 200
    assert Powers.of(exact, torch.full_like(exact, math.nan), 1).sqnr().worst_db == -200


class Tower(nn.Module):
    """A convolution with norm and activation, tokens, heads, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.wide, self.out = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = functional.relu6(self.norm(self.conv(pixels))).flatten(2).transpose(1, 2)
        heads = self.wide(tokens).reshape(1, -1, 2, 4).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads)
        return self.out(mixed.transpose(1, 2).reshape(1, -1, 8))


def pixels(count: int = 3) -> list[Arrays]:
    rng = np.random.default_rng(0)
    return [{"pixels": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def test_what_is_rounded_and_where_its_channels_lie() -> None:
    model = load(Tower(), {"pixels": torch.rand(1, 3, 8, 8)})
    replay = Replay.of(model)
    axes = channel_axes(replay)
    found = [(replay.op(node) or node.op, axes[node]) for node in rounded_nodes(replay)]
    assert found == [
        ("placeholder", 1), ("relu6", 1), ("linear", 2), ("mul", 3),
        ("softmax", 3), ("matmul", 3), ("linear", 2),
    ]  # fmt: skip
    reshaped = [node for node in replay.graph.nodes if replay.op(node) in ("reshape", "transpose")]
    assert [axes[node] for node in reshaped] == [1, 2, 3, 3, 2, 3, 2]
    apart = [replay.op(node) for node in rounded_nodes(replay, ())]
    assert apart[1:4] == ["conv2d", "batch_norm", "relu6"]


def masks() -> list[Callable[[Tensor], Tensor]]:
    boolean = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) > 0.3
    boolean.fill_diagonal_(True)
    attend = functional.scaled_dot_product_attention
    return [
        lambda x: attend(x, x, x),
        lambda x: attend(x, x, x, is_causal=True),
        lambda x: attend(x, x, x, attn_mask=boolean),
        lambda x: attend(x, x, x, attn_mask=boolean.float(), scale=0.3),
    ]


@pytest.mark.parametrize("attend", masks(), ids=["plain", "causal", "boolean", "added"])
def test_attention_is_spelled_out_without_a_change(attend: Callable[[Tensor], Tensor]) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attend(x)

    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    replay = Replay.of(load(Attention(), {"x": x}))
    assert "scaled_dot_product_attention" not in {replay.op(node) for node in replay.graph.nodes}
    torch.testing.assert_close(replay.run({"x": x}, lambda node, value: value), attend(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chosen", list(SCHEMES.values()), ids=str)
def test_a_simulated_layer_is_rounded_input_weight_and_result(chosen: Scheme) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    model = load(nn.Sequential(layer), {"input": torch.randn(4, 5, dtype=torch.float64)})
    inputs = [torch.randn(4, 5, dtype=torch.float64) for _ in range(3)]
    simulated = simulate(model, [{"input": each.numpy()} for each in inputs], chosen)

    def grid(values: list[Tensor]) -> Grid:
        joined = torch.cat(values)
        return activation_grid(float(joined.min()), float(joined.max()), chosen.activation_bits)

    before, after = grid(inputs), grid([layer(each) for each in inputs])
    weight = rounded_weight(layer.weight, chosen.weight_bits, 0)
    for each in inputs:
        wanted = after.round(before.round(each) @ weight.T + layer.bias)
        torch.testing.assert_close(simulated(input=each), wanted, rtol=1e-12, atol=1e-12)


def test_more_bits_are_nearer_and_the_model_stays_as_it_was() -> None:
    model = load(Tower(), {"pixels": torch.rand(1, 3, 8, 8)})
    before = model(pixels()[0])["output"].copy()
    ratios = {name: model_sqnr(model, simulate(model, pixels(), s), pixels()) for name, s in SCHEMES.items()}
    assert ratios["w8a16"].total_db > ratios["w8a8"].total_db > ratios["w4a16"].total_db > 10
    assert all(each.worst_channel_db <= each.total_db for each in ratios.values())
    np.testing.assert_array_equal(model(pixels()[0])["output"], before)
    assert model_sqnr(model, model.module, pixels()).total_db == 200


def test_ranges_name_the_op_its_line_and_the_defect() -> None:
    tower = Tower()
    with torch.no_grad():
        tower.norm.weight[5] *= 1000
        tower.wide.weight[:, 5] /= 1000
    found = tensor_ranges(load(tower, {"pixels": torch.rand(1, 3, 8, 8)}), pixels(), ["w8a8"])
    by_op = {each.op: each for each in found}
    assert found[0].name == "pixels"
    assert by_op["input"].source is None
    linear = next(each for each in found if each.module == "wide")
    assert linear.name == "wide/linear"
    assert "test_npu_quantsim.py:" in str(linear.source)
    assert TensorRange.from_json(linear.to_json()) == linear
    assert all(set(each.sqnr) == {"w8a8"} for each in found)


def test_a_planted_outlier_shows_in_its_tensor_and_in_the_weights_that_undo_it() -> None:
    class Normed(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.after, self.last = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
            with torch.no_grad():
                self.norm.weight[3] *= factor
                self.after.weight[:, 3] /= factor

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.after(self.norm(x)))

    rng = np.random.default_rng(0)
    samples: list[Arrays] = [{"x": rng.normal(size=(8, 16)).astype(np.float32)} for _ in range(4)]
    clean, planted = (
        {r.module: r for r in tensor_ranges(load(Normed(k), {"x": torch.rand(8, 16)}), samples, ["w8a8"])}
        for k in (1, 300)
    )
    assert clean["norm"].sqnr["w8a8"].median_db > 35 > 10 > planted["norm"].sqnr["w8a8"].median_db
    assert planted["norm"].sqnr["w8a8"].total_db > 35  # which hides it
    assert planted["norm"].kurtosis > 5 * clean["norm"].kurtosis
    assert clean["after"].sqnr["w8a8"].total_db > 35 > 15 > planted["after"].sqnr["w8a8"].total_db
    assert planted["last"].sqnr["w8a8"].total_db == pytest.approx(clean["last"].sqnr["w8a8"].total_db, abs=0.5)


def test_no_samples_is_said() -> None:
    model = load(Tower(), {"pixels": torch.rand(1, 3, 8, 8)})
    with pytest.raises(InvalidInput, match="there are no samples"):
        simulate(model, [], SCHEMES["w8a8"])
    with pytest.raises(InvalidInput, match="there are no samples"):
        tensor_ranges(model, [])
    with pytest.raises(InvalidInput, match="no float output is called masks"):
        model_sqnr(model, model.module, pixels(), outputs=["masks"])


def test_masks_of_minus_infinity_and_constants_keep_their_place() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x.masked_fill(x < 0, float("-inf")), -1) + torch.full((4,), 0.0)

    samples: list[Arrays] = [{"x": np.array([[1.0, -1.0, 2.0, 0.5]], np.float32)}]
    model = load(Masked(), {"x": torch.ones(1, 4)})
    found = {each.op: each for each in tensor_ranges(model, samples, ["w8a8"])}
    assert found["masked_fill"].not_finite == 1
    assert (found["masked_fill"].min, found["masked_fill"].max) == (0.5, 2.0)
    assert found["full"].kurtosis is None
    assert found["full"].sqnr["w8a8"].worst_channel is None
    assert np.isfinite(simulate(model, samples, SCHEMES["w8a8"])(x=torch.from_numpy(samples[0]["x"])).numpy()).all()
