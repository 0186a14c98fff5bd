"""Adaptations as they are applied: allowed, repaired, judged, and taken back when they are not good enough."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from npu_models import QUICK, WIDTH, mlp, ops_of, rules, tokens, traced, wants
from torch import Tensor, nn

from edgekit import registry
from edgekit.dataset import Dataset
from edgekit.distill.training.fit_options import FitOptions
from edgekit.errors import InvalidInput, UnknownName
from edgekit.graph import capture
from edgekit.layered import layered
from edgekit.model import Model, weights_sha256
from edgekit.npu.adaptation import ADAPTATIONS, load
from edgekit.npu.adapting import Adapted, adapt
from edgekit.parity import sqnr_db


class Layers(nn.Module):
    """Two blocks, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(nn.GELU()), mlp(nn.GELU())

    def forward(self, input: Tensor) -> Tensor:
        return self.second(input + self.first(input))


def hardswish(bar_db: float, **options: object) -> tuple[Model, Adapted, Dataset]:
    data = tokens(64)
    model = traced(Layers(), data)
    given: dict[str, object] = {"fit": QUICK} | options
    return model, adapt(model, wants("gelu", "gelu_hardswish"), allow=["act"], data=data, bar_db=bar_db, **given), data


def test_repair_comes_nearer_and_is_kept() -> None:
    model, found, data = hardswish(20)
    assert [record.block for record in found.log] == ["first", "second"]
    for record in found.log:
        assert record.kept
        assert record.after_db > record.before_db > 20
        assert record.place.startswith(f"{record.block}.1 (")
        assert "20 or more are asked for" in record.reason
    assert "gelu" not in ops_of(found.model.module, data)
    assert found.unasked == ("gelu_tanh", "gelu_sigmoid", "silu_hardswish")
    right = [model(sample)["output"] for sample in data.split()[1].samples]
    ours = [found.model(sample)["output"] for sample in data.split()[1].samples]
    assert sqnr_db(np.stack(right), np.stack(ours)) == pytest.approx(found.log[-1].model_db, abs=1e-6)


def test_below_the_bar_nothing_changes() -> None:
    before = weights_sha256(traced(Layers(), tokens()).module)
    model, found, _ = hardswish(100)
    assert found.model is model
    assert weights_sha256(model.module) == before
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    for record in found.log:
        assert not record.kept
        assert record.after_db is not None
        assert "below 100" in record.reason


def test_one_block_is_taken_back_and_the_other_stays() -> None:
    _, whole, _ = hardswish(20)
    low, high = sorted(whole.log, key=lambda record: record.after_db)
    model, found, _ = hardswish((low.after_db + high.after_db) / 2)
    kept = {record.block: record.kept for record in found.log}
    assert kept == {high.block: True, low.block: False}
    ours, theirs = layered(capture(found.model)).state_dict(), model.module.state_dict()
    same = {
        block: all(torch.equal(ours[name], theirs[name]) for name in theirs if name.startswith(block)) for block in kept
    }
    assert same == {high.block: False, low.block: True}


def test_what_is_near_enough_is_not_trained() -> None:
    data = tokens()
    found = adapt(traced(Layers(), data), rules(), allow=["gelu_tanh"], data=data)
    assert all(record.kept and record.after_db is None and record.before_db > 60 for record in found.log)


@pytest.mark.parametrize(("drop", "kept"), [(0.001, True), (0.1, False)])
def test_below_the_bar_a_score_decides(drop: float, kept: bool) -> None:
    def score(module: nn.Module) -> float:
        return 1.0 - drop * ("hardswish" in str(module.graph))

    model, found, _ = hardswish(100, score=score)
    assert [record.kept for record in found.log] == [kept] * 2
    assert (found.model is model) is not kept
    assert f"the score falls by {drop}" in found.log[0].reason


def test_training_that_diverges_is_taken_back_with_the_reason() -> None:
    model, found, _ = hardswish(100, fit=FitOptions(steps=20, lr=1e30, clip_norm=0, patience=0))
    assert found.model is model
    assert "the repair failed: the loss or its gradient is NaN or Inf at step" in found.log[0].reason


class Tied(nn.Module):
    """The layer of the block is called again outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.GELU())
        self.again = self.body[2]
        self.back = nn.Linear(WIDTH, 24)

    def forward(self, input: Tensor) -> Tensor:
        return self.again(self.back(self.body(input)))


def test_weights_that_others_use_stay_as_they_are() -> None:
    data = tokens()
    model = traced(Tied(), data)
    found = adapt(model, rules(), allow=["gelu_hardswish"], data=data, bar_db=5, fit=QUICK)
    assert found.log[0].kept
    weights = {id(tensor): tensor for tensor in layered(capture(found.model)).parameters()}.values()
    assert any(torch.equal(model.module.again.weight, tensor) for tensor in weights)
    assert not any(torch.equal(model.module.body[0].weight, tensor) for tensor in weights)


@pytest.mark.parametrize("word", ["acts", "gelu-tanh", ""])
def test_an_unknown_word_is_answered_with_the_list(word: str) -> None:
    data = tokens()
    with pytest.raises(UnknownName, match=r"There are: act, .*attention, .*norm, .*pooling") as caught:
        adapt(traced(Layers(), data), rules(), allow=["act", word], data=data)
    assert all(name in str(caught.value) for name in registry.names(ADAPTATIONS))


@pytest.mark.parametrize("data", [None, Dataset("none", ()), tokens(3)])
def test_without_samples_nothing_can_be_judged(data: Dataset | None) -> None:
    with pytest.raises(InvalidInput, match=r"4 or more, and there are [03]: add --data"):
        adapt(traced(Layers(), tokens()), rules(), allow=["act"], data=data)


def test_every_adaptation_belongs_to_a_group_and_finds_nothing_in_a_plain_model() -> None:
    data = tokens()
    model = traced(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()), data)
    before = copy.deepcopy(model.module.state_dict())
    found = adapt(model, rules(), allow=registry.names(ADAPTATIONS), data=data)
    assert found.log == ()
    assert found.model is model
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert {load(name).GROUP for name in registry.names(ADAPTATIONS)} == {"act", "attention", "norm", "pooling"}
