"""Prompts and masks: coordinates of photographs and of the model's input, places, and what is no prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InvalidInput
from edgekit.processing import ImagePreprocess
from edgekit.segmentation import Box, Picture, Point, Segmentation, sample_prompts

NAMES = Segmentation(encoder="encoder", places=4)
SQUARE = ImagePreprocess(input="pixels", height=64, width=64, resize="longest_side")
sizes = st.integers(1, 3000)


def test_a_prompt_fills_its_places_and_leaves_the_others_unused() -> None:
    found = NAMES.prompt([(1.0, 2.0), (3.0, 4.0, 0)], (5.0, 6.0, 7.0, 8.0))
    assert found["input_points"].tolist() == [[[1, 2], [3, 4], [5, 6], [7, 8]]]
    assert found["input_labels"].tolist() == [[1, 0, 2, 3]]
    assert NAMES.prompt([(1.0, 2.0)], None)["input_labels"].tolist() == [[1, -10, -10, -10]]
    assert found["input_points"].dtype == np.float32
    assert found["input_labels"].dtype == np.int32


def test_nothing_and_too_much_are_no_prompts() -> None:
    with pytest.raises(InvalidInput, match=r"nothing marks the object: give a point or a box"):
        NAMES.prompt([], None)
    with pytest.raises(InvalidInput, match=r"takes 5 places, one a point and two a box, and the model has 4"):
        NAMES.prompt([(1.0, 1.0)] * 3, (0.0, 0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"two places or more, not 1"):
        Segmentation(encoder="encoder", places=1)


@given(height=sizes, width=sizes)
def test_the_longest_side_fills_the_input_and_the_other_keeps_the_proportion(height: int, width: int) -> None:
    rows, columns = SQUARE.valid_size(height, width)
    assert max(rows, columns) == 64
    assert abs(rows - max(1.0, 64 * height / max(height, width))) <= 0.5
    assert abs(columns - max(1.0, 64 * width / max(height, width))) <= 0.5


@given(height=sizes, width=sizes, across=st.floats(0, 1), down=st.floats(0, 1))
def test_a_point_stays_at_its_share_of_the_picture(height: int, width: int, across: float, down: float) -> None:
    picture = Picture.of(np.zeros((height, width, 3)), SQUARE)
    x, y, *_ = picture.point((across * width, down * height))
    assert math.isclose(x, across * picture.valid_width, abs_tol=1e-9)
    assert math.isclose(y, down * picture.valid_height, abs_tol=1e-9)


@given(height=st.integers(1, 200), width=st.integers(1, 200))
def test_a_mask_comes_back_in_the_size_of_the_photograph(height: int, width: int) -> None:
    picture = Picture.of(np.zeros((height, width)), SQUARE)
    logits = np.where(np.arange(16) < 8, 1.0, -1.0)[None].repeat(16, 0)  # the left half of the input
    mask = picture.mask(logits, SQUARE)
    assert mask.shape == (height, width)
    half = 32 * width / picture.valid_width
    edge = math.ceil(width / picture.valid_width) * 4 + 1  # a pixel of the mask is 4 of the input
    assert mask[:, : max(0, int(half) - edge)].all()
    assert not mask[:, int(half) + edge :].any()


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((-1.0, 5.0), r"\(-1, 5\) is not within the picture of 40 x 30"),
        ((5.0, 31.0), r"\(5, 31\) is not within the picture of 40 x 30"),
        ((math.nan, 5.0), r"is no point"),
        ((math.inf, 5.0), r"is no point"),
        ((1.0, 5.0, 2), r"is labelled 2: 1 is the object, 0 is none of it"),
        ((1.0,), r"is no point: give x, y"),
    ],
)
def test_a_point_that_is_none_is_refused(point: Point, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Picture.of(np.zeros((30, 40)), SQUARE).point(point)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5.0, 5.0, 5.0, 9.0), r"is no box: give x0, y0, x1, y1 with x0 < x1 and y0 < y1"),
        ((9.0, 5.0, 5.0, 9.0), r"is no box"),
        ((1.0, 2.0, math.nan, 4.0), r"is no box"),
        ((1.0, 2.0, 3.0), r"is no box"),
        ((1.0, 2.0, 50.0, 4.0), r"\(50, 4\) is not within the picture"),
    ],
)
def test_a_box_that_is_none_is_refused(box: Box, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Picture.of(np.zeros((30, 40)), SQUARE).box(box)


@given(count=st.integers(0, 20))
def test_prompts_to_verify_with_lie_in_the_picture_and_are_of_all_kinds(count: int) -> None:
    made = sample_prompts(NAMES, [(30, 50)] * count)
    assert len(made) == count
    for index, prompt in enumerate(made):
        used = prompt["input_labels"][0] != -10
        points = prompt["input_points"][0][used]
        assert ((points >= 0) & (points <= [50, 30])).all()
        assert used.sum() == (1, 2, 2, 3)[index % 4]
        assert (2 in prompt["input_labels"]) == (index % 4 >= 2)
