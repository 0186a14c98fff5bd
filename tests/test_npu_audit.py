"""The audit of a model for an NPU: what is an op, what is computed along with it, where it runs, what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.dataset import Dataset
from edgekit.errors import InvalidInput, UnsupportedModel
from edgekit.graph import capture
from edgekit.layered import layered
from edgekit.model import Model
from edgekit.npu.auditing.audit import Audit, OpPlacement, audit, place_ops
from edgekit.npu.rules import npu_ids, npu_rules
from edgekit.profile import find_device
from edgekit.source import load
from edgekit.types import DynamicDim
from tests.npu_agreement import Classifier

IMAGE = (1, 3, 8, 8)
ETHOS, HTP, HAILO = "ethos-u85-256", "sa8295p", "hailo-8l"
KNOWN = [npu for npu in npu_ids() if npu_rules(npu).ops]


class Called(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


class Block(nn.Module):
    """A convolution with all that its kernel computes along, a residual sum, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Conv2d(8, 8, 1)
        self.drop, self.head = nn.Dropout(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        return self.head(self.drop(x.mean((2, 3), keepdim=True).flatten(1)))


def of(module: nn.Module | Callable[[Tensor], Any], *shape: int) -> Model:
    module = module if isinstance(module, nn.Module) else Called(module)
    return load(module.eval(), torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def placed(module: nn.Module | Callable[[Tensor], Any], *shape: int, device: str = ETHOS) -> tuple[OpPlacement, ...]:
    return audit(of(module, *shape), find_device(device)).placements


def test_what_a_kernel_computes_along_belongs_to_the_row_of_its_product() -> None:
    found = [(each.op, each.module, each.folded, each.macs) for each in placed(Block(), *IMAGE)]
    assert found == [
        ("conv2d", "stem.0", ("batch_norm", "hardtanh"), 64 * 8 * 3 * 9),
        ("conv2d", "body", (), 64 * 8 * 8),
        ("add", "", (), 0),
        ("mean", "", (), 0),
        ("flatten", "", (), 0),
        ("linear", "head", (), 32),
    ]


def test_an_activation_that_products_do_not_take_in_is_an_op_of_its_own() -> None:
    block = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardswish())
    assert [each.op for each in placed(block, *IMAGE)] == ["conv2d", "hardswish"]
    assert [(each.op, each.folded) for each in placed(block, *IMAGE, device=HTP)] == [("conv2d", ("hardswish",))]


def test_constants_and_what_gives_back_its_input_are_no_ops() -> None:
    def call(x: Tensor) -> Tensor:
        table = torch.arange(8).float().sin() * 2
        return nn.functional.dropout(x.view(1, 8).expand(1, 8).float().contiguous(), training=False) + table

    assert [each.op for each in placed(call, 1, 8)] == ["add"]


def test_every_op_is_named_with_its_line() -> None:
    sources = {each.source for each in placed(Block(), *IMAGE) if not each.module}
    assert all(source and source.startswith("test_npu_audit.py:") for source in sources)


def test_coverage_counts_ops_and_macs() -> None:
    found = audit(of(nn.Sequential(nn.Linear(8, 8), Called(torch.cos), nn.Linear(8, 8)), 1, 8), find_device(ETHOS))
    assert [each.verdict for each in found.placements] == ["runs", "falls back", "runs"]
    assert found.coverage_ops == pytest.approx(2 / 3)
    assert found.coverage_macs == 1
    assert found.basis == "table estimate"
    nothing = audit(of(lambda x: x, 1, 8), find_device(ETHOS))
    assert (nothing.coverage_ops, nothing.coverage_macs, nothing.wasted_macs) == (1, 1, 0)


def test_macs_on_padding_are_those_of_channels_that_the_npu_fills_up() -> None:
    found = audit(of(nn.Conv2d(3, 16, 1), *IMAGE), find_device(ETHOS))
    (conv,) = found.placements
    assert (conv.macs, conv.padded_macs) == (64 * 3 * 16, 64 * 16 * 16)
    assert found.wasted_macs == pytest.approx(13 / 16)


def test_layout_copies_are_permutations_that_move_something() -> None:
    def call(x: Tensor) -> Tensor:
        return x.transpose(1, 2).relu().transpose(0, 1).relu()

    found = audit(of(call, 1, 8, 16), find_device(ETHOS))
    assert [each.copies_bytes for each in found.placements] == [128, 0, 0, 0]  # int8; the second turns a size of 1
    assert found.layout_copies == 1


def test_the_bytes_of_copies_are_those_of_the_numbers_that_the_npu_takes() -> None:
    model, device = of(lambda x: x.transpose(1, 2), 1, 8, 16), find_device(HTP)
    assert audit(model, device, dtype="float16").placements[0].copies_bytes == 256
    with pytest.raises(InvalidInput, match=r"does not compute float32: take int8, int16, float16"):
        audit(model, device, dtype="float32")


def test_tensors_of_too_many_dimensions_are_listed() -> None:
    found = audit(of(lambda x: x.view(1, 2, 4, 2, 8).permute(0, 1, 3, 2, 4), 1, 8, 16), find_device(HAILO))
    assert [each.partition(" (")[0] for each in found.high_rank] == [
        "view in the model itself",
        "permute in the model itself",
    ]
    assert found.high_rank[0].endswith("5 dimensions")
    assert {each.verdict for each in found.placements} != {"runs"}


def test_sizes_that_vary_are_listed_and_need_a_rewrite() -> None:
    model = load(nn.Linear(8, 8), torch.randn(2, 8), dynamic=["batch=1:4"])
    found = audit(model, find_device(ETHOS))
    assert found.dynamic == (str(DynamicDim(name="batch", minimum=1, maximum=4)),)
    assert [(each.verdict, each.fix) for each in found.placements] == [("needs a rewrite", "static_shapes")]


@torch.library.custom_op("audit_test::relu", mutates_args=())
def own_relu(x: Tensor) -> Tensor:
    return x.relu()


@own_relu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_custom_op_falls_back_whatever_its_name_is() -> None:
    (found,) = placed(lambda x: torch.ops.audit_test.relu(x), 1, 8)
    assert (found.op, found.verdict) == ("relu", "falls back")
    assert found.reason == "it is a custom op of 'audit_test', which no compiler of an NPU knows"


def test_control_flow_on_values_falls_back_with_the_fix() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    found = {each.op: each for each in placed(Chooses(), 1, 8)}
    assert found["cond"].verdict == "falls back"
    assert "torch.where" in found["cond"].fix


def test_a_model_that_cannot_be_traced_is_refused_with_its_line_and_the_fix() -> None:
    def call(x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(UnsupportedModel, match=r"test_npu_audit.py:\d+.*torch\.where"):
        audit(of(call, 1, 8), find_device(ETHOS))


def test_devices_that_cannot_be_audited_are_refused_with_those_that_can() -> None:
    model = of(torch.relu, 1, 8)
    with pytest.raises(InvalidInput, match=r"'raspberrypi5' has no NPU"):
        audit(model, find_device("raspberrypi5"))
    with pytest.raises(
        InvalidInput, match=r"which ops Intel NPU of Core Ultra runs is not known here; it is for apple-ane"
    ):
        audit(model, find_device("core-ultra-155h"))


def test_data_adds_what_tensors_hold() -> None:
    numbers = np.random.default_rng(0)
    samples = tuple({"x": numbers.standard_normal(IMAGE).astype(np.float32)} for _ in range(2))
    data = Dataset(samples=samples, origin="two random images")
    found = audit(of(Block(), *IMAGE), find_device(ETHOS), data=data, schemes=["w8a8"])
    assert {"stem.2", "body", "head"} <= {each.module for each in found.ranges}
    assert all(set(each.sqnr) == {"w8a8"} for each in found.ranges)
    assert Audit.from_json(found.to_json()) == found


def test_a_model_that_was_made_editable_is_placed_alike() -> None:
    model = of(Block(), *IMAGE)
    again = replace(model, module=layered(capture(model)))
    for name in (ETHOS, HTP):
        before, after = (audit(each, find_device(name)).placements for each in (model, again))
        assert [(p.module, p.verdict, p.macs) for p in after] == [(p.module, p.verdict, p.macs) for p in before]


@pytest.fixture(scope="module")
def programs() -> tuple[ExportedProgram, ...]:
    return capture(load("zoo:efficientnet_lite0")), capture(of(Classifier(), 1, 3, 32, 32))


@pytest.mark.parametrize("npu", KNOWN)
def test_every_npu_places_every_op_of_real_models(npu: str, programs: tuple[ExportedProgram, ...]) -> None:
    for program in programs:
        found = place_ops(program, npu_rules(npu))
        assert all(bool(each.reason and each.fix) == (each.verdict != "runs") for each in found)
        assert all(each.macs <= each.padded_macs for each in found)
        assert sum(each.macs for each in found) > 1e5
        assert "runs" in {each.verdict for each in found}


def test_npus_differ_where_their_rules_do(programs: tuple[ExportedProgram, ...]) -> None:
    tables = {npu: tuple(each.verdict for each in place_ops(programs[1], npu_rules(npu))) for npu in KNOWN}
    assert len(set(tables.values())) >= 3
