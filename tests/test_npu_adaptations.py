"""Every adaptation by itself: where it acts, and how near its answers are without repair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from npu_models import LENGTH, QUICK, WIDTH, changed, mlp, ops_of, rules, tokens, traced, wants
from torch import Tensor, nn
from torch.nn import functional

from edgekit.dataset import Dataset
from edgekit.distill.training.fit_options import FitOptions
from edgekit.graph import capture, op_counts
from edgekit.model import weights_sha256
from edgekit.npu.adapting import adapt
from edgekit.npu.gated_conv import GatedConv
from edgekit.npu.rewriting import rewrite
from edgekit.npu.rules import OpRule
from edgekit.parity import sqnr_db


@pytest.mark.parametrize(
    ("name", "exact", "expected_db"),
    [
        ("gelu_tanh", nn.GELU(), 74.0),
        ("gelu_sigmoid", nn.GELU(), 39.5),
        ("gelu_hardswish", nn.GELU(), 25.2),
        ("silu_hardswish", nn.SiLU(), 20.7),
    ],
)
@torch.no_grad()
def test_activations_are_as_near_as_research_says(name: str, exact: nn.Module, expected_db: float) -> None:
    data = tokens(1, (1000, 1000))
    model = traced(nn.Sequential(exact), data)
    given = torch.from_numpy(data.samples[0]["input"])
    found = sqnr_db(exact(given).numpy(), changed(name, model, data)(input=given).numpy())
    assert found == pytest.approx(expected_db, abs=0.15)


@torch.no_grad()
def test_scales_of_hard_swish_go_into_the_layers_around_it() -> None:
    data = tokens()
    model = traced(mlp(nn.GELU()), data)
    edited = changed("gelu_hardswish", model, data)
    assert [str(node.target) for node in edited.graph.nodes if node.op == "call_function"] == ["aten.hardswish.default"]
    given = torch.from_numpy(data.samples[0]["input"])
    first, _, last = model.module
    right = last(functional.hardswish(1.702 * first(given)) / 1.702)
    assert torch.allclose(edited(input=given), right, atol=1e-6)
    assert weights_sha256(model.module) == weights_sha256(traced(mlp(nn.GELU()), data).module)


class Moves(nn.Module):
    """Between the layers lie ops that only move numbers, as after other rewrites."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(WIDTH, 24, 1), nn.Linear(24, WIDTH)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.one(input.transpose(1, 2)[:, :, None]).squeeze(2).permute(0, 2, 1)
        return self.two(functional.gelu(hidden).reshape(1, LENGTH, 24))


@torch.no_grad()
def test_scales_pass_ops_that_only_move_numbers() -> None:
    data = tokens()
    model = traced(Moves(), data)
    edited = changed("gelu_hardswish", model, data)
    assert "mul" not in ops_of(edited, data)
    given = torch.from_numpy(data.samples[0]["input"])
    hidden = model.module.one(given.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
    right = model.module.two(functional.hardswish(1.702 * hidden) / 1.702)
    assert torch.allclose(edited(input=given), right, atol=1e-6)


class Twice(nn.Module):
    """The activation's input and output are both read by others, so no scale can go into a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.one(input)
        active = functional.gelu(hidden)
        return self.two(active) + active + hidden


@torch.no_grad()
def test_scales_stay_ops_where_others_read_the_tensors() -> None:
    data = tokens()
    model = traced(Twice(), data)
    given = torch.from_numpy(data.samples[0]["input"])
    hidden = model.module.one(given)
    active = functional.hardswish(1.702 * hidden) / 1.702
    right = model.module.two(active) + active + hidden
    assert torch.allclose(changed("gelu_hardswish", model, data)(input=given), right, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.LayerNorm(WIDTH), (1, LENGTH, WIDTH)),
        (nn.RMSNorm(WIDTH), (1, LENGTH, WIDTH)),
        (nn.LayerNorm(WIDTH), (LENGTH, WIDTH)),
        (nn.LayerNorm(WIDTH), (1, 2, LENGTH, WIDTH)),
        (nn.GroupNorm(1, WIDTH), (1, WIDTH, 2, LENGTH)),
    ],
)
@torch.no_grad()
def test_a_norm_over_tokens_that_have_its_statistics_already_is_a_batch_norm(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    data = tokens(64, shape)
    axis = 1 if isinstance(norm, nn.GroupNorm) else -1
    samples = tuple({"input": standardised(sample["input"], axis)} for sample in data.samples)
    data = Dataset("standardised", samples)
    model = traced(nn.Sequential(norm), data)
    model.module[0].weight.copy_(torch.linspace(0.5, 2, WIDTH))
    edited = changed("norm_to_batch_norm", model, data)
    assert any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in edited.modules())
    given = torch.from_numpy(samples[0]["input"])
    assert sqnr_db(model.module(given).numpy(), edited(input=given).numpy()) > 80


def standardised(array: np.ndarray, axis: int) -> np.ndarray:
    axes = tuple(range(1, array.ndim)) if axis == 1 else -1
    made = array - array.mean(axes, keepdims=True)
    return np.asarray(made / made.std(axes, keepdims=True), np.float32)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.two(functional.relu(self.one(self.norm(input))))


def test_nothing_is_left_of_a_norm_after_the_exact_rewrites() -> None:
    data = tokens()
    made = adapt(traced(Normed(), data), wants("layer_norm", "norm_to_batch_norm"), allow=["norm"], data=data,
                 bar_db=15, fit=QUICK)  # fmt: skip
    assert made.log[0].kept
    folded = rewrite(made.model, rules(), only=["fold_batch_norm", "keep_channels_first"]).model
    assert op_counts(capture(folded)) == {"linear": 2, "relu": 1, "add": 1}


def test_norms_over_several_axes_are_left_with_a_reason() -> None:
    data = tokens()
    found = adapt(traced(nn.Sequential(nn.LayerNorm([LENGTH, WIDTH])), data), rules(), allow=["norm_to_batch_norm"],
                  data=data)  # fmt: skip
    assert found.log[0].reason == "it normalises 2 axes together"
    assert not found.log[0].kept


class Attention(nn.Module):
    """Two heads; `window` tokens back, None for all, in the forms that a model may have."""

    def __init__(self, window: int | None = None, fused: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        self.register_buffer("mask", seen if window is None else seen.triu(1 - window))
        self.fused, self.causal, self.masked = fused, causal, window is not None

    def forward(self, input: Tensor) -> Tensor:
        query, key, value = (part(input).view(1, LENGTH, 2, -1).transpose(1, 2)
                             for part in (self.query, self.key, self.value))  # fmt: skip
        if self.fused:
            mask = self.mask if self.masked else None
            mixed = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal)
        else:
            mixed = torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, -1) @ value
        return self.out(mixed.transpose(1, 2).reshape(1, LENGTH, WIDTH))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 3}, {"fused": False}])
@torch.no_grad()
def test_clipped_softmax_is_equation_4(options: dict[str, bool]) -> None:
    data = tokens()
    model = traced(Attention(**options), data)
    written_out = rewrite(model, rules(), only=["attention_to_matmul"]).model
    given = torch.from_numpy(data.samples[0]["input"])
    inner = model.module
    query, key, value = (
        part(given).view(1, LENGTH, 2, -1).transpose(1, 2) for part in (inner.query, inner.key, inner.value)
    )
    scores = query @ key.transpose(-2, -1) / 2
    if options and "fused" not in options:
        scores = scores.masked_fill(~inner.mask, -torch.inf)
    weights = (1.03 * scores.softmax(-1) - 0.03).clip(0, 1)
    right = inner.out((weights @ value).transpose(1, 2).reshape(1, LENGTH, WIDTH))
    assert torch.allclose(changed("clipped_softmax", written_out, data)(input=given), right, atol=1e-6)


def test_fused_attention_is_left_with_the_rewrite_that_opens_it() -> None:
    data = tokens()
    (record,) = adapt(traced(Attention(), data), rules(), allow=["clipped_softmax"], data=data).log
    assert not record.kept
    assert "apply the rewrite attention_to_matmul first" in record.reason


@torch.no_grad()
def test_attention_becomes_the_gated_convolution_that_streams() -> None:
    data = tokens()
    edited = changed("attention_to_gated_conv", traced(Attention(causal=True), data), data)
    layer = GatedConv(WIDTH, bias=True)
    layer.load_state_dict(edited.get_submodule("mixer").state_dict())
    given = torch.from_numpy(data.samples[0]["input"])
    right = layer(given.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
    assert torch.allclose(edited(input=given), right, atol=1e-6)
    assert not {"softmax", "scaled_dot_product_attention"} & ops_of(edited, data)


def test_attention_that_sees_a_few_tokens_is_learnt_and_that_sees_all_is_not() -> None:
    data = tokens(128)
    near, far = Attention(window=2), Attention()
    models = [traced(module, data) for module in (near, far)]
    with torch.no_grad():
        near.query.weight.zero_()  # the same weight for each token it sees: a convolution
        near.query.bias.zero_()
        near.key.bias.zero_()
    fit = FitOptions(steps=300, batch=8, lr=1e-2, weight_decay=0.0, ema=0.9, heldout_share=0.1, patience=0)
    kept, left = (adapt(m, rules(), allow=["attention_to_gated_conv"], data=data, fit=fit, bar_db=10) for m in models)
    assert kept.log[0].kept
    assert kept.log[0].after_db > kept.log[0].before_db + 10
    assert not left.log[0].kept
    assert left.model is models[1]


class Nested(Attention):
    """Attention of its own, and then another one inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention()

    def forward(self, input: Tensor) -> Tensor:
        return self.inner(super().forward(input))


def test_what_a_block_took_along_is_told() -> None:
    data = tokens()
    found = adapt(traced(Nested(), data), rules(), allow=["attention_to_gated_conv"], data=data, bar_db=-200, fit=QUICK)
    assert [record.block for record in found.log] == ["", "inner"]
    assert [record.kept for record in found.log] == [True, False]
    assert found.log[1].reason == "what was kept at another place took it along"


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, input: Tensor) -> Tensor:
        image = self.conv(input)
        pooled = image.mean((2, 3), keepdim=True)
        return image * torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))


@torch.no_grad()
def test_a_gate_becomes_its_mean_only_where_the_pooling_is_too_large() -> None:
    data = tokens(8, (1, 3, 5, 5))
    model = traced(SqueezeExcite(), data)
    edited = changed("drop_squeeze_excite", model, data)
    assert "mean" not in ops_of(edited, data)
    inner = model.module
    images = [inner.conv(torch.from_numpy(sample["input"])) for sample in data.samples]
    gates = [torch.sigmoid(inner.excite(inner.squeeze(image.mean((2, 3), keepdim=True)).relu())) for image in images]
    right = images[0] * torch.stack(gates).mean(0)
    assert torch.allclose(edited(input=torch.from_numpy(data.samples[0]["input"])), right, atol=1e-6)
    limited = rules(OpRule(ops=("mean",), limits={"reduced": (1, 25)}, fix="drop_squeeze_excite", source="test"))
    found = adapt(model, limited, allow=["pooling"], data=data)
    assert found.log[0].reason == "its pooling over 25 places is within the 25 of Any NPU"


class Padded(nn.Module):
    """Attention that leaves out tokens whose first channel is below zero, in each of the ways that models do it."""

    least: torch.Tensor

    def __init__(self, way: str, number: float = torch.finfo(torch.float32).min) -> None:
        super().__init__()
        self.way, self.number = way, number
        self.register_buffer("least", torch.full((LENGTH, LENGTH), number))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        logits, out = input @ input.mT, (input[..., 0] < 0)[:, None]
        if self.way == "fill":
            logits = logits.masked_fill(out, self.number)
        elif self.way == "product":
            logits = logits + out.float() * self.number
        elif self.way == "stored":
            logits = logits + torch.where(out, self.least, 0.0)
        elif self.way == "two":
            later = torch.full((LENGTH, LENGTH), self.number).triu(1)
            logits = logits + torch.where(out, self.number, 0.0) + later
        answer: torch.Tensor = logits.softmax(-1) @ input
        return answer


def padded(least: int, count: int = 8) -> Dataset:
    """Samples in which so many tokens at least are left in, the first among them."""
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((1, LENGTH, WIDTH)).astype(np.float32) for _ in range(count)]
    for index, array in enumerate(made):
        array[..., 0] = np.where(np.arange(LENGTH) < max(least, index % 3), 1, -1)
    return Dataset("padded", tuple({"input": array} for array in made))


@pytest.mark.parametrize(
    ("way", "number"),
    [("product", -3e38), *((way, number) for way in ("fill", "stored", "two") for number in (-3e38, -np.inf))],
)
@torch.no_grad()
def test_masks_that_inputs_decide_become_finite(way: str, number: float) -> None:
    data = padded(least=1)
    model = traced(Padded(way, number), data)
    adapted = adapt(model, rules(), allow=["finite_input_masks"], data=data)
    assert [(each.kept, each.model_db) for each in adapted.log] == [(True, 200.0)]
    found = rewrite(adapted.model, rules(), only=["finite_masks"]).model  # the masks that are constants
    for node in found.module.graph.nodes:
        numbers = [each for each in node.args if isinstance(each, float)]
        assert all(each >= -255 for each in numbers), node
    held = torch.cat([tensor.flatten() for tensor in found.module.buffers()] or [torch.zeros(1)])
    assert held.min() >= -255
    for sample in padded(least=1, count=20).samples:
        given = torch.from_numpy(sample["input"])
        assert torch.equal(found.module(input=given), model.module(given))


def test_masks_stay_where_samples_have_rows_with_nothing_left() -> None:
    data = padded(least=0)
    model = traced(Padded("product"), data)
    adapted = adapt(model, rules(), allow=["finite_input_masks"], data=data)
    assert [each.kept for each in adapted.log] == [False]
    assert "below 30" in adapted.log[0].reason
    assert adapted.model is model


def test_a_lower_end_of_a_clamp_is_no_mask() -> None:
    data = tokens(8)
    clamp = Computed(lambda x: (x @ x.mT).clamp(min=torch.finfo(torch.float32).min).softmax(-1))
    assert not adapt(traced(clamp, data), rules(), allow=["finite_input_masks"], data=data).log


class Computed(nn.Module):
    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.compute(input)


class Counted(nn.Module):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        mask = torch.where((input[..., 0] < 0)[:, None], -3e38, 0.0)
        answer: torch.Tensor = (input @ input.mT + mask).softmax(-1) @ input
        return answer * mask.count_nonzero()


def test_a_mask_that_others_read_stays() -> None:
    data = padded(least=1)
    adapted = adapt(traced(Counted(), data), rules(), allow=["finite_input_masks"], data=data)
    assert [each.kept for each in adapted.log] == [False]
    assert adapted.log[0].reason.startswith("'count_nonzero' at the model itself (test_npu_adaptations.py:")
    assert adapted.log[0].reason.endswith("reads what it fills")
