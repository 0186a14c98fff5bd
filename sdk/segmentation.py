"""How a promptable segmentation model is asked, and what its answer means: clicks and boxes in, masks out.

One prompt marks one object. It fills a fixed number of places, each a point in the pixels of the model's input with a
label that says what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgekit.errors import InvalidInput
from edgekit.folder import write_errors
from edgekit.processing import Array, Arrays, ImagePreprocess
from edgekit.types import Value

NOT_HERE, HERE, UPPER_LEFT, LOWER_RIGHT, UNUSED = 0, 1, 2, 3, -10  # what the point in a place is
Point = tuple[float, float] | tuple[float, float, int]  # x, y, and whether the object is there (1, the default) or not
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


class Segmentation(Value, frozen=True, kw_only=True):
    """The names and sizes that asking such a model needs."""

    encoder: str  # path of the module that makes a picture's embedding; the rest takes that and the prompt
    places: int  # for points; a box takes two
    points: str = "input_points"  # float32 [1, places, 2]: x, y
    labels: str = "input_labels"  # int32 [1, places]
    masks: str = "pred_masks"  # float32 [1, candidates, h, w]: above 0 is the object
    scores: str = "iou_scores"  # float32 [1, candidates]: how good the model takes each to be

    def __post_init__(self) -> None:
        if self.places < 2:
            raise ValueError(f"a prompt needs two places or more, not {self.places}")

    def prompt(self, points: Sequence[Point], box: Box | None) -> Arrays:
        """The model's inputs for one object, from coordinates in its own pixels. Raises `InvalidInput`."""
        marks = [(*point[:2], point[2] if len(point) == 3 else HERE) for point in points]
        if box is not None:
            marks += [(*box[:2], UPPER_LEFT), (*box[2:], LOWER_RIGHT)]
        if not marks:
            raise InvalidInput("nothing marks the object: give a point or a box")
        if len(marks) > self.places:
            raise InvalidInput(
                f"this prompt takes {len(marks)} places, one a point and two a box, and the model has {self.places}"
            )
        places = np.zeros((1, self.places, 2), np.float32)
        labels = np.full((1, self.places), UNUSED, np.int32)
        for index, (x, y, label) in enumerate(marks):
            places[0, index], labels[0, index] = (x, y), label
        return {self.points: places, self.labels: labels}


class Picture(NamedTuple):
    """A photograph's size, and how much of the model's input it covers. All in pixels."""

    height: int
    width: int
    valid_height: int
    valid_width: int

    @classmethod
    def of(cls, image: Array, preprocess: ImagePreprocess) -> Picture:
        """Of an image `[H, W, ...]`."""
        height, width = image.shape[:2]
        return cls(height, width, *preprocess.valid_size(height, width))

    def point(self, point: Point) -> Point:
        """A point of the photograph in pixels of the model's input. Raises `InvalidInput` for one outside it."""
        if len(point) not in (2, 3) or not all(math.isfinite(value) for value in point):
            raise InvalidInput(f"{point} is no point: give x, y, and 1 for the object or 0 for what is none of it")
        if len(point) == 3 and point[2] not in (HERE, NOT_HERE):
            raise InvalidInput(f"the point {point} is labelled {point[2]}: 1 is the object, 0 is none of it")
        x, y = point[:2]
        if not (0 <= x <= self.width and 0 <= y <= self.height):
            raise InvalidInput(f"the point ({x:g}, {y:g}) is not within the picture of {self.width} x {self.height}")
        label = HERE if len(point) == 2 else point[2]
        return x * self.valid_width / self.width, y * self.valid_height / self.height, label

    def box(self, box: Box) -> Box:
        """A box of the photograph in pixels of the model's input. Raises `InvalidInput` for one that holds nothing."""
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            raise InvalidInput(f"{box} is no box: give x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        upper_left, lower_right = self.point(box[:2]), self.point(box[2:])
        return *upper_left[:2], *lower_right[:2]

    def mask(self, logits: Array, preprocess: ImagePreprocess) -> Array:
        """One of the model's masks `[h, w]` as bool `[H, W]` of the photograph: padding cut off, resized, above 0."""
        from PIL import Image

        bilinear = Image.Resampling.BILINEAR
        square = Image.fromarray(logits.astype(np.float32)).resize((preprocess.width, preprocess.height), bilinear)
        valid = square.crop((0, 0, self.valid_width, self.valid_height))
        return np.asarray(valid.resize((self.width, self.height), bilinear)) > 0


def save_mask(mask: Array, path: Path) -> None:
    """Write a bool mask as a PNG: white is the object."""
    from PIL import Image

    with write_errors(path):
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def sample_prompts(segmentation: Segmentation, sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[Arrays]:
    """Prompts to verify a model with, one for each valid (height, width): a click, two, a box, a box with a click."""
    rng = np.random.default_rng(seed)
    made = []
    for index, (height, width) in enumerate(sizes):
        x0, x1 = np.sort(rng.uniform(0, width, 2)).tolist()
        y0, y1 = np.sort(rng.uniform(0, height, 2)).tolist()
        clicks: list[Point] = [((x0 + x1) / 2, (y0 + y1) / 2, HERE), (x0, y0, NOT_HERE)]
        kind = index % 4
        box = (x0, y0, x1, y1) if kind >= 2 else None
        made.append(segmentation.prompt([clicks[:1], clicks, [], clicks[:1]][kind], box))
    return made
