"""Where observers sit before conversion, and what that is worth in dB after it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekit.compression import Quantization
from edgekit.exporters._executorch_graph import editable
from edgekit.parity import sqnr_db

pytest.importorskip("torchao", reason="the ExecuTorch exporter is not installed: pip install 'edgekit[executorch]'")
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgekit.exporters._executorch_quantizer import SMALLEST_SCALE, DynamicQuantizer, OnStepObserver, StaticQuantizer

IMAGE = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Around(nn.Module):
    """A function of one convolution's output, and a second convolution behind it."""

    def __init__(self, between: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.between = nn.Conv2d(3, 8, 3), nn.Conv2d(channels, 4, 1), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def prepared(module: nn.Module, quantizer: object, x: Tensor = IMAGE) -> GraphModule:
    graph = editable(torch.export.export(module.eval(), (x,), strict=False))
    with torch.no_grad():
        found: GraphModule = prepare_pt2e(graph, quantizer)
        found(x)
    return found


def observed(graph: GraphModule) -> dict[str, str]:
    """Every activation that has an observer, as its op (`conv2d`, the second one `conv2d_1`) -> the observer."""
    labels: dict[object, str] = {}
    for node in graph.graph.nodes:
        op = str(node.target).removeprefix("aten.").partition(".")[0] if node.op == "call_function" else node.op
        count = sum(label.startswith(op) for label in labels.values())
        labels[node] = f"{op}_{count}" if count else op
    return {
        labels[node.args[0]]: str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_module" and node.args[0].op != "get_attr"
    }


def quality_db(module: nn.Module, quantizer: object, x: Tensor = IMAGE) -> float:
    with torch.no_grad():
        expected = module(x)
        actual = convert_pt2e(prepared(module, quantizer, x))(x)
    return sqnr_db(expected.numpy(), actual.numpy())


SCHEME = Quantization(scheme="static", weight_dtype="int8", activation_dtype="int8")
STATIC = StaticQuantizer(SCHEME, float_answers=False)


def keeping(*modules: str) -> Quantization:
    return msgspec.structs.replace(SCHEME, keep_float=modules)


@pytest.mark.parametrize(
    ("clamp", "fused"),
    [
        (F.relu, "relu"),
        (F.relu6, "hardtanh"),
        (lambda x: F.hardtanh(x, -0.2, 0.3), "hardtanh"),
        (lambda x: x.clamp(0, 0.1), "hardtanh"),
        (lambda x: torch.clamp(x, min=0), "relu"),
        (lambda x: x.clamp_min(0), "relu"),
        (lambda x: torch.relu_(x), "relu"),
        (nn.ReLU6(inplace=True), "hardtanh"),
        (nn.Hardtanh(-0.1, 0.1), "hardtanh"),
    ],
)
def test_a_clamp_behind_a_convolution_is_observed_and_the_convolution_is_not(
    clamp: Callable[[Tensor], Tensor], fused: str
) -> None:
    module = Around(clamp)
    assert list(observed(prepared(module, STATIC))) == ["placeholder", fused, "conv2d_1"]
    assert quality_db(module, STATIC) > 25


def test_a_clamp_with_another_reader_of_its_source_is_not_fused() -> None:
    graph = prepared(Around(lambda x: F.relu(x) + x), STATIC)
    assert {"conv2d", "relu", "add"} <= set(observed(graph))


@pytest.mark.parametrize("op", [torch.add, torch.sub, torch.mul])
def test_a_clamp_behind_a_sum_or_product_is_observed_in_its_place(op: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = Around(lambda x: F.hardtanh(op(x, x.abs()), 0, 0.05))
    found = observed(prepared(module, STATIC))
    assert "hardtanh" in found
    assert op.__name__ not in found
    assert quality_db(module, STATIC) > 20


@pytest.mark.parametrize(
    ("between", "op"),
    [
        (lambda x: F.max_pool2d(x, 2), "max_pool2d"),
        (lambda x: x.transpose(2, 3), "transpose"),
        (lambda x: x.permute(0, 1, 3, 2), "permute"),
        (lambda x: x.reshape(4, 8, 4, 9), "reshape"),
        (lambda x: x.flatten(2).unsqueeze(-1), "flatten"),
        (lambda x: x[:, :, 1:3], "slice"),
    ],
)
def test_an_op_that_passes_values_on_shares_the_scale_of_what_it_reads(
    between: Callable[[Tensor], Tensor], op: str
) -> None:
    graph = prepared(Around(between), STATIC)
    found = observed(graph)
    assert graph.get_submodule(found[op]) is graph.get_submodule(found["conv2d"])
    assert quality_db(Around(between), STATIC) > 25


def test_an_op_on_the_models_input_passes_integers_on_when_only_integers_are_wanted() -> None:
    module = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, 8)), nn.Conv2d(3, 4, 3))
    assert list(observed(prepared(module, STATIC))) == ["placeholder", "flatten", "unflatten", "conv2d"]
    halves = nn.Sequential(nn.Flatten(2), nn.Softmax(-1))
    assert observed(prepared(halves, STATIC)) == {}


def test_concatenated_tensors_and_their_sources_share_one_scale() -> None:
    module = Around(lambda x: torch.cat([F.relu(x), 3 * x], 1), channels=16)
    graph = prepared(module, STATIC)
    found = observed(graph)
    assert graph.get_submodule(found["cat"]) is graph.get_submodule(found["relu"]) is graph.get_submodule(found["mul"])
    assert quality_db(module, STATIC) > 20


@pytest.mark.parametrize("others", [lambda y, x: [y, y], lambda y, x: [x, y], lambda y, x: [y, x, y]])
def test_a_tensor_may_be_concatenated_with_itself_and_with_the_models_input(
    others: Callable[[Tensor, Tensor], list[Tensor]],
) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(others(self.conv(x), x), 1)

    assert quality_db(Joined(), STATIC) > 25


def test_a_concatenation_that_begins_with_the_models_input_has_its_zero_on_a_step() -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x.abs()], 1)

    graph = prepared(Joined(), STATIC)
    assert isinstance(graph.get_submodule(observed(graph)["placeholder"]), OnStepObserver)


@pytest.mark.parametrize("pad", [(0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 1, 3)])
def test_zeros_around_a_convolution_are_its_own_and_nothing_is_observed_between(pad: tuple[int, ...]) -> None:
    module = Around(lambda x: F.pad(x, pad))
    found = observed(prepared(module, STATIC))
    assert "pad" not in found
    assert quality_db(module, STATIC) > 25


@pytest.mark.parametrize("pad", [{"value": 1.0}, {"mode": "reflect"}])
def test_a_pad_that_no_kernel_has_stays_float_and_is_observed_behind(pad: dict[str, object]) -> None:
    module = Around(lambda x: F.pad(x, (1, 1, 1, 1), **pad))  # type: ignore[arg-type]
    assert "pad" in observed(prepared(module, STATIC))
    assert quality_db(module, STATIC) > 25


@pytest.mark.parametrize("mean", [lambda x: x.mean((2, 3)), lambda x: x.mean((-1, -2), True), nn.AdaptiveAvgPool2d(1)])
def test_a_mean_over_the_image_is_observed_on_both_sides(mean: Callable[[Tensor], Tensor]) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(mean(self.conv(x)).flatten(1))

    found = observed(prepared(Pooled(), STATIC))
    assert {"conv2d", "linear"} < set(found)
    assert {"mean", "adaptive_avg_pool2d"} & set(found)
    assert quality_db(Pooled(), STATIC) > 25


@pytest.mark.parametrize("mean", [lambda x: x.mean(dim=None), lambda x: x.mean(dim=None, keepdim=True)])
def test_a_mean_over_everything_stays_float(mean: Callable[[Tensor], Tensor]) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return mean(self.conv(x))

    assert list(observed(prepared(Whole(), STATIC))) == ["placeholder", "conv2d"]


def test_batch_norm_behind_a_convolution_is_folded_before_ranges_are_taken() -> None:
    module = Around(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()))
    assert "batch_norm" not in observed(prepared(module, STATIC))
    assert quality_db(module, STATIC) > 25


def test_transposed_convolutions_have_a_scale_per_output_channel_on_axis_1() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(3, 6, 2), nn.ReLU6())
    graph = prepared(module, STATIC)
    weights = [n.target for n in graph.graph.nodes if n.op == "call_module" and n.args[0].op == "get_attr"]
    assert graph.get_submodule(str(weights[0])).min_val.shape == (6,)
    assert quality_db(module, STATIC) > 25


def test_modules_kept_in_float_are_not_observed_nor_is_their_clamp() -> None:
    module = Around(F.relu)
    found = observed(prepared(module, StaticQuantizer(keeping("first"), float_answers=False)))
    assert list(found) == ["relu", "conv2d_1"]  # the first of them because an integer kernel reads it
    kept = quality_db(module, StaticQuantizer(keeping("first", "last"), float_answers=False))
    assert kept == 200.0  # no error at all


def test_a_linear_layer_that_answers_returns_floats() -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    kept, rounded = (quality_db(module, StaticQuantizer(SCHEME, float_answers=f), x) for f in (True, False))
    assert kept > rounded


def test_zero_of_an_input_lies_on_a_step() -> None:
    observer = OnStepObserver(dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine)
    pixels = torch.linspace(-1, 1, 256)
    observer(pixels)
    scale, zero = observer.calculate_qparams()
    back = ((pixels / scale).round() + zero).clamp(-128, 127).sub(zero) * scale
    assert abs(float(zero) - round(float(zero))) == 0
    assert float((back - pixels).abs().max()) <= float(scale) / 2 + 1e-6
    plain = torch.fake_quantize_per_tensor_affine(pixels, 2 / 255, 0, -128, 127)
    assert float((back - pixels).abs().mean()) <= float((plain - pixels).abs().mean())


def test_an_input_too_quiet_for_a_step_gets_the_smallest_there_is() -> None:
    class Quiet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    graph = prepared(Quiet(), STATIC, IMAGE / 100)
    scale, zero = graph.get_submodule(observed(graph)["placeholder"]).calculate_qparams()
    assert float(scale) == SMALLEST_SCALE
    assert (-128 - int(zero)) * SMALLEST_SCALE <= -0.0099


@pytest.mark.parametrize("quantizer", [STATIC, DynamicQuantizer(SCHEME)])
def test_a_linear_layer_with_a_computed_weight_or_bias_stays_float(quantizer: object) -> None:
    class Computed(nn.Module):
        def __init__(self, of: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.of, self.weight, self.bias = of, nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            given = {"weight": self.weight, "bias": self.bias}
            given[self.of] = given[self.of] * x.mean()
            return F.linear(x, **given)

    for operand in ("weight", "bias"):
        graph = prepared(Computed(operand), quantizer, IMAGE[0, 0])
        assert not {"placeholder", "linear"} & set(observed(graph))


@pytest.mark.parametrize("quantizer", [STATIC, DynamicQuantizer(SCHEME)])
def test_a_linear_layer_over_constants_stays_float(quantizer: object) -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.of_queries = nn.Parameter(torch.randn(2, 8)), nn.Linear(8, 4)
            self.of_input = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.of_input(x) @ self.of_queries(self.queries.relu()).T).softmax(-1)

    assert len(observed(prepared(Learned(), quantizer, IMAGE[0, 0]))) == (2 if quantizer is STATIC else 1)


def test_dynamic_layers_are_linear_ones_and_keep_their_outputs_float() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 8))
    graph = prepared(module, DynamicQuantizer(SCHEME), IMAGE[:1])
    assert list(observed(graph)) == ["flatten"]
    assert quality_db(module, DynamicQuantizer(SCHEME), IMAGE[:1]) > 30
    assert observed(prepared(module, DynamicQuantizer(keeping("2")), IMAGE[:1])) == {}


def test_observing_before_a_clamp_costs_what_the_rules_save() -> None:
    """The stock quantizer's place for the observer of a ReLU6, on the same graph."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardtanh(0, 0.1), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        module[0].weight.mul_(30)
    stock = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    ours = quality_db(module, STATIC)
    assert ours > quality_db(module, stock) + 6
    assert np.isfinite(ours)
