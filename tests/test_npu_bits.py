"""Mixed precision by sensitivity: the ops that do harm get more bits, and no others."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import InvalidInput, UnknownName
from edgekit.model import Model
from edgekit.npu.numbers.bits import Bits, choose_bits
from edgekit.npu.numbers.quantsim import model_sqnr, simulate
from edgekit.npu.numbers.scheme import scheme
from edgekit.processing import Arrays
from edgekit.source import load

LOUD = 200.0  # how much louder one channel of the second layer is


class Uneven(nn.Module):
    """Four layers; one channel between the second and the third is loud, and the third takes it back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        with torch.no_grad():
            self.layers[1].weight[5] *= LOUD
            self.layers[1].bias[5] *= LOUD
            self.layers[2].weight[:, 5] /= LOUD

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(x) if layer is self.layers[3] else x
            x = layer(x)
        return x


@cache
def uneven() -> tuple[Model, list[Arrays]]:
    rng = np.random.default_rng(0)
    return load(Uneven(), {"x": torch.rand(8, 16)}), [
        {"x": rng.normal(size=(8, 16)).astype(np.float32)} for _ in range(4)
    ]


@cache
def chosen(min_db: float) -> Bits:
    return choose_bits(*uneven(), ("w8a8", "w8a16"), min_db)


def test_the_loud_tensor_is_found_and_widened_first() -> None:
    found = chosen(18.0)
    worst = min(found.ops, key=lambda op: op.alone_db)
    assert worst.name in ("layers.1/linear", "layers.2/linear")
    assert found.curve[1].op == worst.name


@pytest.mark.parametrize("min_db", [-100.0, 12.0, 20.0, 300.0])
def test_the_walk_ends_where_the_bar_holds(min_db: float) -> None:
    found = chosen(min_db)
    widened = [op.name for op in found.ops if op.scheme == "w8a16"]
    if found.met:
        assert sorted(widened) == sorted(point.op for point in found.curve if point.op)
    assert found.met == (found.total_db >= min_db)
    assert all(point.total_db < min_db for point in found.curve[:-1])
    if not found.met:
        assert len(widened) == len(found.ops)
        assert [(point.op, point.scheme) for point in found.curve] == [(None, "w8a8"), (None, "w8a16")]
    assert Bits.from_json(found.to_json()) == found


def test_both_ends_of_the_walk_are_the_plain_schemes() -> None:
    model, samples = uneven()
    found = chosen(300.0)
    for point, name in ((found.curve[0], "w8a8"), (found.curve[-1], "w8a16")):
        assert point.total_db == pytest.approx(
            model_sqnr(model, simulate(model, samples, scheme(name)), samples).total_db, abs=1e-9
        )


def test_an_op_alone_does_less_harm_than_all() -> None:
    found = chosen(300.0)
    assert all(op.alone_db > found.curve[0].total_db for op in found.ops)
    assert sum(10 ** (-op.alone_db / 10) for op in found.ops) == pytest.approx(
        10 ** (-found.curve[0].total_db / 10), rel=0.7
    )


def test_weights_get_more_bits_too() -> None:
    found = choose_bits(*uneven(), ("w4a16", "w8a16"), 18.0)
    assert found.met
    assert {op.scheme for op in found.ops} == {"w4a16", "w8a16"}


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(InvalidInput, match="among two schemes or more, not 1"):
        choose_bits(*uneven(), ("w8a8",), 30.0)
    with pytest.raises(UnknownName, match="no scheme is called 'w2a2'"):
        choose_bits(*uneven(), ("w2a2", "w8a8"), 30.0)
    with pytest.raises(InvalidInput, match="there are no samples"):
        choose_bits(uneven()[0], [], ("w8a8", "w8a16"), 30.0)
