"""What a step of training depends on: its order of images, learning rate, decay and average."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.distill.training.schedule import average_share, batch_numbers, learning_rate, parameter_groups, split
from tests.toy_training import student


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 5))
def test_every_item_comes_once_in_each_round(count: int, batch: int, seed: int) -> None:
    items = list(range(100, 100 + count))
    steps = -(-3 * count // batch)
    drawn = [number for step in range(steps) for number in batch_numbers(step, batch, items, seed)]
    assert len(drawn) == steps * batch
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == items


def test_the_order_changes_with_seed_and_round() -> None:
    items = list(range(50))
    assert batch_numbers(0, 50, items, 0) != batch_numbers(1, 50, items, 0)
    assert batch_numbers(0, 50, items, 0) != batch_numbers(0, 50, items, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), st.floats(0, 0.99), st.integers(0, 3))
def test_equal_images_are_never_on_both_sides(keys: list[str], share: float, seed: int) -> None:
    learnt, held = split(keys, share, seed)
    assert sorted(learnt + held) == list(range(len(keys)))
    assert not {keys[i] for i in learnt} & {keys[i] for i in held}
    assert learnt
    assert bool(held) == (share > 0 and len(set(keys)) > 1)


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(0, 100, 1.0, 0.0) == 1.0


def test_the_average_forgets_its_first_steps() -> None:
    assert average_share(1, 0.999) == pytest.approx(9 / 11)
    assert average_share(10**6, 0.999) == pytest.approx(0.001)
    assert average_share(5, 0.0) == 1.0


def test_norms_and_biases_do_not_decay() -> None:
    net = student()
    matrices, vectors = parameter_groups(net, 0.1)
    assert {id(p) for p in matrices["params"]} == {id(net.stem.weight), id(net.head.weight)}
    assert {id(p) for p in vectors["params"]} == {id(net.norm.weight), id(net.norm.bias), id(net.head.bias)}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
