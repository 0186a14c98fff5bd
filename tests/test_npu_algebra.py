"""Rewrites of weights one after the other, on models as they come, and on what other rewrites made of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekit.bench._npu_outliers import SmallViT, images, load_on
from edgekit.bench._npu_rewrites import RULES
from edgekit.graph import capture
from edgekit.layered import layered
from edgekit.model import Model
from edgekit.npu.rewrites import smooth_outliers
from edgekit.npu.rewrites._examples import worn
from edgekit.npu.rewriting import apply_one, rewrite
from edgekit.source import load

RESIDUAL = ["fold_norm_affine", "center_residual", "rotate_residual"]


def small_vit() -> Model:
    torch.manual_seed(0)
    return load_on(worn(SmallViT(nn.LayerNorm, depth=2)).eval(), images(1))


def test_a_transformer_is_folded_centred_and_turned_in_one_go() -> None:
    model = small_vit()
    found = rewrite(model, RULES, only=[*reversed(RESIDUAL), "linear_to_conv"])
    assert [each.name for each in found.log] == [*RESIDUAL[:2], "linear_to_conv", RESIDUAL[2]]
    assert [len(each.done) for each in found.log] == [5, 5, 9, 5]
    assert all(each.error is not None and each.error < 1e-12 for each in found.log)
    with torch.no_grad():
        torch.testing.assert_close(found.model.module(**model.example), model.module(**model.example))
    again = rewrite(found.model, RULES, only=RESIDUAL[:2])  # traced once more
    assert not any(each.done for each in again.log)


@pytest.mark.parametrize("name", ["fold_norm_affine", "smooth_outliers", "center_residual", "rotate_residual"])
def test_norms_are_rewritten_behind_linear_to_conv_too(name: str) -> None:
    model = small_vit()
    edited = layered(capture(model))
    for step in ("linear_to_conv", *(RESIDUAL[: RESIDUAL.index(name)] if name in RESIDUAL else [])):
        edited, _ = apply_one(step, edited, RULES, model.example)
    _, record = apply_one(name, edited, RULES, model.example)
    assert len(record.done) == 5


@pytest.mark.parametrize("name", ["equalize", "pad_channels"])
def test_chains_are_rewritten_behind_linear_to_conv_too(name: str) -> None:
    body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model = load(body.eval(), {"input": torch.randn(2, 5, 4)})
    edited, _ = apply_one("linear_to_conv", layered(capture(model)), RULES, model.example)
    _, record = apply_one(name, edited, RULES, model.example)
    assert len(record.done) == 1


def test_measured_maxima_decide_where_they_are_given() -> None:
    body = worn(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)))
    model = load(body.eval(), {"input": torch.randn(2, 4)})
    weights = []
    for maxima in (torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 400.0])):
        edited = layered(capture(model))
        list(smooth_outliers.apply(edited, RULES, {"0": maxima}))
        norm = edited.get_submodule("0")
        weights.append(norm.get_parameter("weight").detach())
        with torch.no_grad():
            torch.testing.assert_close(edited(**model.example)[0], model.module(**model.example)[0])
    torch.testing.assert_close(weights[0][:3], weights[1][:3])
    torch.testing.assert_close(weights[0][3], weights[1][3] * 20)


def test_equalising_settles_with_equal_ranges_on_both_sides() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 2, 1, bias=False)
    with torch.no_grad():
        first.weight.mul_(torch.tensor([0.01, 0.1, 1, 10, 100])[:, None, None, None])
    found = rewrite(load(nn.Sequential(first, nn.ReLU(), second).eval(), {"input": torch.randn(1, 3, 6, 6)}), RULES,
                    only=["equalize"]).model.module  # fmt: skip
    rows, columns = (found.get_parameter(f"{layer}.weight").abs() for layer in (0, 2))
    torch.testing.assert_close(rows.amax((1, 2, 3)), columns.amax((0, 2, 3)))


def test_filled_up_channels_are_multiples_and_hold_nothing() -> None:
    body = nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.ReLU6(), nn.Conv2d(20, 2, 1))
    found = rewrite(load(worn(body).eval(), {"input": torch.randn(1, 3, 6, 6)}), RULES, only=["pad_channels"])
    weight: Tensor = found.model.module.get_parameter("0.weight")
    assert weight.shape == (32, 3, 3, 3)
    assert not weight[20:].any()
    assert found.model.module.get_parameter("3.weight").shape == (2, 32, 1, 1)
    assert [each.reason for each in found.log[0].skipped] == ["2 channels: the model returns it"]


def test_a_stem_over_blocks_of_pixels_keeps_to_four_dimensions() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
    found = rewrite(load(stem.eval(), {"input": torch.randn(1, 3, 32, 32)}), RULES, only=["space_to_depth_stem"])
    graph = layered(capture(found.model)).graph
    assert max(len(node.meta["val"].shape) for node in graph.nodes if node.op == "call_function") == 4
    assert found.model.module.get_parameter("0.weight").shape == (8, 12, 2, 2)


def test_branches_become_one_layer() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.window, self.point, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, input: Tensor) -> Tensor:
            return torch.relu(self.norm(input) + self.point(input) + self.window(input))

    found = rewrite(load(worn(Branches()).eval(), {"input": torch.randn(1, 4, 6, 6)}), RULES, only=["merge_branches"])
    assert sum(isinstance(each, nn.Conv2d | nn.BatchNorm2d) for each in found.model.module.modules()) == 1
