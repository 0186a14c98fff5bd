"""Streams of channels: an op is passed through only where it commutes with what rewrites do to channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.graph import capture
from edgekit.layered import layered
from edgekit.npu.channels import LINEAR, MOVES, POSITIVE, SEPARATE, passage, stream
from edgekit.npu.products import Product, product_of, set_product
from edgekit.npu.rewrites._rotations import hadamard_matrix, rotation
from edgekit.source import load

Op = Callable[[Tensor], Tensor]
OPS: dict[str, Op] = {
    "permute": lambda x: x.permute(2, 0, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "merge": lambda x: x.reshape(2, 3, 20),
    "split": lambda x: x.reshape(2, 3, 2, 2, 5),
    "unsqueeze": lambda x: x.unsqueeze(2),
    "squeeze": lambda x: x[:1].squeeze(0),
    "slice": lambda x: x[:, 1:, :, ::2],
    "index_select": lambda x: x.index_select(2, torch.tensor([2, 0])),
    "roll": lambda x: x.roll((1, 2), (1, 3)),
    "flip": lambda x: x.flip(2),
    "select": lambda x: x.select(1, 1),
    "expand": lambda x: x[:, :1].expand(2, 7, 4, 5),
    "mean": lambda x: x.mean(2),
    "mean, all kept": lambda x: x.mean((1, 3), keepdim=True),
    "cast": lambda x: x.to(torch.float32).to(torch.float64),
    "add": lambda x: x + x.roll(1, 2),
    "sub, scaled": lambda x: torch.sub(x, x, alpha=0.5),
    "add of a number": lambda x: x + 3,
    "mul": lambda x: x * torch.arange(2.0, 4.0).reshape(2, 1, 1, 1),
    "mul of itself": lambda x: x * x,
    "div": lambda x: x / 3,
    "div of one": lambda x: 1 / (x.square() + 1),
    "neg": lambda x: -x,
    "cat": lambda x: torch.cat([x, 2 * x], 2),
    "pad": lambda x: functional.pad(x, (1, 2)),
    "pad with ones": lambda x: functional.pad(x, (1, 2), value=1.0),
    "avg_pool2d": lambda x: functional.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: functional.adaptive_avg_pool2d(x, 2),
    "upsample_nearest2d": lambda x: functional.interpolate(x, scale_factor=2),
    "upsample_bilinear2d": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "relu": torch.relu,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.3),
    "abs": torch.abs,
    "max_pool2d": lambda x: functional.max_pool2d(x, 2),
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(1),
    "cumsum": lambda x: x.cumsum(1),
}


class Called(nn.Module):
    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, input: Tensor) -> Tensor:
        return self.op(input)


def along(tensor: Tensor, axis: int, change: Op) -> Tensor:
    """Change the channels of a tensor, which the function finds last."""
    return change(tensor.movedim(axis, -1)).movedim(-1, axis)


def channel_changes(size: int) -> dict[str, Op]:
    """What rewrites do to channels: a shift and a factor, a rotation, a positive factor."""
    torch.manual_seed(0)
    factors, shift, turn = torch.rand(size).double() + 0.5, torch.randn(size).double(), rotation(size)
    return {"moves": lambda x: x * factors + shift, "linear": lambda x: x @ turn.T, "positive": lambda x: x * factors}


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_passed_through_only_where_it_commutes(name: str) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    graph = layered(capture(load(Called(OPS[name]).eval(), {"input": example}))).graph
    (start,) = (node for node in graph.nodes if node.op == "placeholder")
    (last,) = (node for node in graph.nodes if node.op == "output")
    (result,) = last.all_input_nodes
    for axis, size in enumerate(example.shape):
        for kind, table in (("moves", MOVES), ("linear", LINEAR), ("positive", POSITIVE)):
            found = stream(start, axis, passage(table))
            if found is None or set(found.writers) != {start} or {reader for _, reader in found.readers} != {last}:
                continue
            change = channel_changes(size)[kind]
            after = along(OPS[name](example), found.axis[result], change)
            torch.testing.assert_close(
                OPS[name](along(example, axis, change)), after, msg=f"{name}, {kind}, axis {axis}"
            )


@pytest.mark.parametrize(
    ("name", "table", "axes"),
    [("permute", MOVES, 4), ("merge", MOVES, 2), ("select", MOVES, 3), ("mean", MOVES, 3), ("add", LINEAR, 3),
     ("mul", LINEAR, 3), ("cat", LINEAR, 3), ("pad", LINEAR, 3), ("avg_pool2d", LINEAR, 1), ("relu", POSITIVE, 4),
     ("relu", LINEAR, 0), ("add of a number", LINEAR, 0), ("mul of itself", POSITIVE, 0), ("relu6", POSITIVE, 0),
     ("relu6", SEPARATE, 4), ("softmax", SEPARATE, 0)],
)  # fmt: skip
def test_as_many_axes_are_passed_through_as_can_be(name: str, table: dict[str, object], axes: int) -> None:
    graph = layered(capture(load(Called(OPS[name]).eval(), {"input": torch.randn(2, 3, 4, 5)}))).graph
    (start,) = (node for node in graph.nodes if node.op == "placeholder")
    found = [stream(start, axis, passage(table)) for axis in range(4)]  # type: ignore[arg-type]
    passed = [each for each in found if each and all(reader.op == "output" for _, reader in each.readers)]
    assert len(passed) == axes


def test_ops_of_the_tables_are_aten_names() -> None:
    missing = [name for name in SEPARATE if not hasattr(torch.ops.aten, name)]
    assert not missing


@pytest.mark.parametrize("width", range(1, 129))
def test_a_rotation_is_orthogonal_for_every_width(width: int) -> None:
    torch.testing.assert_close(rotation(width) @ rotation(width).T, torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("width", [2**k for k in range(11)] + [12, 20, 24, 44, 48, 192, 320, 384, 640, 768])
def test_widths_of_models_have_a_hadamard_matrix(width: int) -> None:
    found = hadamard_matrix(width)
    assert found is not None
    assert set(found.flatten().tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(found @ found.T, width * torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("width", [3, 5, 6, 7, 9, 10, 14, 100])
def test_other_widths_have_none(width: int) -> None:
    assert hadamard_matrix(width) is None


LAYERS = [
    nn.Linear(6, 4),
    nn.Conv1d(6, 4, 3, groups=2),
    nn.Conv2d(6, 4, (3, 2), padding=1, stride=2, bias=False),
    nn.ConvTranspose1d(6, 4, 3, groups=2),
    nn.ConvTranspose2d(6, 4, 3, stride=2, bias=False),
    nn.Conv3d(6, 6, 2, groups=6),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_the_algebra_of_products_holds_for_every_layer(layer: nn.Module) -> None:
    layer = layer.double()
    product = product_of(layer)
    assert product is not None
    rank = 2 if isinstance(layer, nn.Linear) else product.weight.dim() - 1
    axis = rank - 1 if isinstance(layer, nn.Linear) else 1
    input = torch.randn(2, 6, *[7] * (rank - 2), dtype=torch.float64)
    ins, outs, shift = (torch.randn(size).double() for size in (product.inputs, product.outputs, product.outputs))
    right = layer(input)
    set_product(layer, product.scale_outputs(outs, shift))
    torch.testing.assert_close(layer(input), along(right, axis, lambda y: y * outs + shift))
    set_product(layer, product)
    scaled = layer(along(input, axis, lambda x: x * ins))
    set_product(layer, product.scale_inputs(ins))
    torch.testing.assert_close(layer(input), scaled)


def test_shifts_and_matrices_of_a_layer_without_groups() -> None:
    layer = nn.Conv2d(3, 2, 2).double()
    product, input = product_of(layer), torch.randn(1, 3, 5, 4).double()
    assert product is not None
    shift, matrix = torch.randn(3).double(), torch.randn(5, 2).double()
    shifted, right = layer(input + shift[:, None, None]), layer(input)
    set_product(layer, product.shift_inputs(shift))
    torch.testing.assert_close(layer(input), shifted)
    set_product(layer, product.map_outputs(matrix))
    assert layer.out_channels == 5
    torch.testing.assert_close(layer(input), along(right, 1, lambda y: y @ matrix.T))
    back = torch.randn(3, 7).double()
    set_product(layer, product.map_inputs(back))
    wide = torch.randn(1, 7, 5, 4).double()
    narrow = layer(wide)
    set_product(layer, product)
    torch.testing.assert_close(narrow, layer(along(wide, 1, lambda x: x @ back.T)))


def test_a_layer_that_is_no_product_is_none() -> None:
    assert product_of(nn.ReLU()) is None
    assert product_of(None) is None
    assert isinstance(product_of(nn.Linear(1, 1)), Product)
