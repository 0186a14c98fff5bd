"""Losses agree with float64 references, count valid places only, and weigh every image alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekit.distill.training.losses import LOSSES, channel_scales, loss, valid_places
from edgekit.errors import InvalidInput, UnknownName
from edgekit.processing import Array

SHAPES = [(3, 5, 4, 6), (3, 7, 5), (3, 8)]


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 2, torch.randn(shape, generator=generator) * 3 + 1


def padded(rows: int, columns: int, count: int = 3, side: tuple[int, int] = (8, 12)) -> Tensor:
    valid = torch.zeros(count, *side, dtype=torch.bool)
    valid[:, :rows, :columns] = True
    return valid


def places(array: Array) -> Array:
    """[N, P, C] in float64."""
    if array.ndim == 4:
        return array.reshape(*array.shape[:2], -1).transpose(0, 2, 1).astype(np.float64)
    return (array if array.ndim == 3 else array[:, None]).astype(np.float64)


def reference(name: str, student: Tensor, teacher: Tensor, keep: Array) -> float:
    """One place after another, in float64; `keep` is [N, P]."""
    ours, theirs = places(student.numpy()), places(teacher.numpy())
    scale = theirs[keep].std(0)
    scale = np.maximum(scale, 1e-3 * scale.max())
    images = []
    for image in range(len(ours)):
        errors = []
        for at in np.flatnonzero(keep[image]):
            s, t = ours[image, at], theirs[image, at]
            difference = np.abs(s - t)
            errors.append(
                {
                    "mse": (difference**2).mean(),
                    "huber": np.where(difference < 1, difference**2 / 2, difference - 0.5).mean(),
                    "cosine": 1 - s @ t / (np.linalg.norm(s) * np.linalg.norm(t)),
                    "whitened": ((difference / scale) ** 2).mean(),
                }[name]
            )
        images.append(np.mean(errors) if errors else 0.0)
    return float(np.mean(images))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_agrees_with_float64_one_place_at_a_time(name: str, shape: tuple[int, ...]) -> None:
    student, teacher = pair(shape)
    keep = np.ones((3, places(student.numpy()).shape[1]), bool)
    wanted = reference(name, student, teacher, keep)
    assert wanted > 0.1
    assert float(loss(name)({"x": student}, {"x": teacher}, None)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_only_valid_places_count_and_each_image_alike(name: str) -> None:
    student, teacher = pair((3, 5, 4, 6))
    valid = padded(8, 12)
    valid[1, 4:] = False  # half of the rows
    valid[2, :, 2:] = False  # one of six columns stays
    keep = np.ones((3, 4, 6), bool)
    keep[1, 2:], keep[2, :, 1:] = False, False
    wanted = reference(name, student, teacher, keep.reshape(3, -1))
    assert float(loss(name)({"x": student}, {"x": teacher}, valid)) == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(reference(name, student, teacher, np.ones((3, 24), bool)), rel=1e-3)


@pytest.mark.parametrize("junk", [1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("name", LOSSES)
def test_padded_pixels_change_neither_the_loss_nor_a_gradient_by_a_bit(name: str, junk: float) -> None:
    student, teacher = pair((3, 5, 4, 6))
    valid = padded(5, 12)  # rows 0 and 1 of 4 are valid, row 2 is by half and so is not

    def run(fill: float) -> tuple[Tensor, Tensor]:
        ours, theirs = student.clone(), teacher.clone()
        ours[:, :, 2:], theirs[:, :, 2:] = fill, -fill
        ours.requires_grad_()
        value = loss(name)({"x": ours}, {"x": theirs}, valid)
        value.backward()  # type: ignore[no-untyped-call]
        assert ours.grad is not None
        return value.detach(), ours.grad

    (clean, slope), (dirty, dirty_slope) = run(0.0), run(junk)
    assert torch.equal(clean, dirty)
    assert torch.equal(slope, dirty_slope)
    assert slope[:, :, :2].abs().max() > 0
    assert not slope[:, :, 2:].any()


def test_a_pixel_counts_where_more_than_half_of_it_is_image() -> None:
    output = torch.zeros(1, 2, 4, 4)
    for rows, wanted in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (12, 4)):
        valid = padded(rows, 12, count=1, side=(12, 12))  # a pixel of the output is three rows
        assert int(valid_places(output, valid).reshape(4, 4)[:, 0].sum()) == wanted, rows


def test_an_image_without_a_valid_place_adds_nothing() -> None:
    student, teacher = pair((2, 5, 4, 4))
    valid = padded(8, 12, count=2)
    valid[1] = False
    both = loss("mse")({"x": student}, {"x": teacher}, valid)
    first = loss("mse")({"x": student[:1]}, {"x": teacher[:1]}, valid[:1])
    assert float(both) == pytest.approx(float(first) / 2)


def test_levels_are_averaged_whatever_their_sizes() -> None:
    one, other = pair((2, 4, 8, 8)), pair((2, 16, 2, 2), seed=1)
    both = loss("mse")({"a": one[0], "b": other[0]}, {"a": one[1], "b": other[1]}, None)
    alone = [loss("mse")({"x": s}, {"x": t}, None) for s, t in (one, other)]
    assert float(both) == pytest.approx(float(sum(alone)) / 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([name for name in LOSSES if name != "whitened"]))
def test_a_batch_is_the_mean_of_its_halves(seed: int, name: str) -> None:
    student, teacher = pair((4, 3, 4, 4), seed)
    valid = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.6
    whole = loss(name)({"x": student}, {"x": teacher}, valid)
    halves = [loss(name)({"x": student[p]}, {"x": teacher[p]}, valid[p]) for p in (slice(0, 2), slice(2, 4))]
    assert float(whole) == pytest.approx(float(sum(halves)) / 2, rel=1e-5)


def test_whitening_is_blind_to_the_size_of_a_channel() -> None:
    student, teacher = pair((8, 4, 3, 3))
    size = torch.tensor([1.0, 100.0, 0.1, 7.0]).view(1, -1, 1, 1)
    plain = loss("whitened")({"x": student}, {"x": teacher}, None)
    scaled = loss("whitened")({"x": student * size}, {"x": teacher * size}, None)
    assert float(scaled) == pytest.approx(float(plain), rel=1e-4)
    assert float(loss("mse")({"x": student * size}, {"x": teacher * size}, None)) > 100 * float(plain)


def test_given_scales_serve_instead_of_those_of_the_batch() -> None:
    student, teacher = pair((4, 3, 2, 2))
    scales = {"x": torch.tensor([2.0, 2.0, 2.0])}
    found = loss("whitened", scales)({"x": student}, {"x": teacher}, None)
    assert float(found) == pytest.approx(float(loss("mse")({"x": student}, {"x": teacher}, None)) / 4)


def test_a_channel_that_never_varies_does_not_outweigh_the_others() -> None:
    teacher = torch.randn(4, 3, 2, 2)
    teacher[:, 1] = 5.0
    scales = channel_scales({"x": teacher}, None)["x"]
    assert float(scales[1]) == pytest.approx(1e-3 * float(scales.max()))
    assert channel_scales({"x": torch.zeros(2, 3)}, None)["x"].min() > 0


def test_narrow_outputs_are_compared_in_float32() -> None:
    student, teacher = pair((2, 512, 4, 4))
    found = loss("mse")({"x": student.bfloat16()}, {"x": teacher.half()}, None)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float((student.bfloat16().float() - teacher.half().float()).square().mean()))


def test_wrong_outputs_and_names_are_told() -> None:
    student, teacher = pair((2, 4, 4, 4))
    with pytest.raises(InvalidInput, match=r"the student gives \{'y': \[2, 4, 4, 4\]\}, and the teacher \{'x'"):
        loss("mse")({"y": student}, {"x": teacher}, None)
    with pytest.raises(InvalidInput, match="the student gives"):
        loss("mse")({"x": student[:, :2]}, {"x": teacher}, None)
    with pytest.raises(UnknownName, match=r"no loss is called 'cosin'\. Did you mean 'cosine'"):
        loss("cosin")
