"""Labelled images without a download: crops of the shipped photographs with ellipses and polygons pasted on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.dataset import PHOTOS, photo_bytes
from edgekit.processing import Array, open_image

SIDE = 64
LEAST_AREA, MOST_AREA = 0.03, 0.35  # of the image that one object shows
TEXTURE = 0.25  # how much of an object's look is a photograph; the rest is one colour
TRIES = 100


@dataclass(frozen=True, eq=False)
class Scene:
    """An image with the masks of the objects that were pasted on it."""

    image: Array  # uint8 [side, side, 3]
    masks: Array  # bool [objects, side, side]; what can be seen of each object, so they do not overlap


def scenes(count: int, seed: int, *, objects: int = 2, side: int = SIDE) -> tuple[Scene, ...]:
    """The same seed gives the same scenes, another seed others of the same photographs."""
    rng = np.random.default_rng(seed)
    photos = [scaled for names in PHOTOS.values() for name in names for scaled in _scales(name, side)]
    return tuple(_scene(rng, photos, objects, side) for _ in range(count))


def write_scenes(made: Sequence[Scene], images: Path, truth: Path) -> None:
    """`images/00000.png` and its label map `truth/00000.png`, where 0 is background and object k has the value k."""
    from PIL import Image

    for folder in (images, truth):
        folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(made):
        labels = (scene.masks * np.arange(1, len(scene.masks) + 1, dtype=np.uint8)[:, None, None]).sum(0, np.uint8)
        Image.fromarray(scene.image).save(images / f"{number:05}.png")
        Image.fromarray(labels).save(truth / f"{number:05}.png")


def _scene(rng: np.random.Generator, photos: Sequence[Array], objects: int, side: int) -> Scene:
    """Draw until every object shows enough of itself; more objects than fit would never end, so tries are counted."""
    for _ in range(TRIES):
        shapes = [_polygon(rng, side) if rng.random() < 0.5 else _ellipse(rng, side) for _ in range(objects)]
        hidden = np.zeros((side, side), bool)
        masks: list[Array] = []
        for shape in reversed(shapes):  # the last one pasted lies on top
            masks.insert(0, shape & ~hidden)
            hidden |= shape
        if all(LEAST_AREA <= mask.mean() <= MOST_AREA for mask in masks):
            return Scene(_paint(rng, photos, masks, side), np.stack(masks))
    raise ValueError(f"{objects} objects of at least {LEAST_AREA:.0%} of the image do not fit in it")


def _paint(rng: np.random.Generator, photos: Sequence[Array], masks: Sequence[Array], side: int) -> Array:
    image = _crop(rng, photos, side)
    for mask in masks:
        colour = rng.uniform(0, 255, 3)
        look = TEXTURE * _crop(rng, photos, side) + (1 - TEXTURE) * colour
        image = np.where(mask[..., None], look, image)
    return image.round().astype(np.uint8)


def _scales(name: str, side: int) -> list[Array]:
    """A photograph in whole fractions of its size, as small as holds a crop; each pixel is the mean of a block."""
    photo = np.asarray(open_image(photo_bytes(name)), dtype=np.float64)
    found = []
    for step in range(1, min(photo.shape[:2]) // side + 1):
        height, width = (size // step for size in photo.shape[:2])
        blocks = photo[: height * step, : width * step].reshape(height, step, width, step, 3)
        found.append(blocks.mean((1, 3)))
    return found


def _crop(rng: np.random.Generator, photos: Sequence[Array], side: int) -> Array:
    """A random square of a random photograph at a random scale."""
    photo = photos[int(rng.integers(len(photos)))]
    top, left = (int(rng.integers(0, size - side + 1)) for size in photo.shape[:2])
    return photo[top : top + side, left : left + side]


def _grid(side: int) -> tuple[Array, Array]:
    y, x = np.mgrid[:side, :side] + 0.5
    return x, y


def _ellipse(rng: np.random.Generator, side: int) -> Array:
    x, y = _grid(side)
    centre, radii, angle = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0.1, 0.3, 2) * side, rng.uniform(0, np.pi)
    along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
    return np.asarray((along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1)


def _polygon(rng: np.random.Generator, side: int) -> Array:
    """Three to seven corners around a centre: what the triangles between it and each edge hold."""
    x, y = _grid(side)
    centre = rng.uniform(0.25, 0.75, 2) * side
    corners = int(rng.integers(3, 8))
    angles = (np.arange(corners) + rng.uniform(0.1, 0.9, corners)) * 2 * np.pi / corners
    reach = rng.uniform(0.15, 0.38, corners) * side
    points = centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    inside = np.zeros((side, side), bool)
    for first, second in zip(points, np.roll(points, -1, 0), strict=True):
        turns = [(b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) >= 0
                 for a, b in ((centre, first), (first, second), (second, centre))]  # fmt: skip
        inside |= turns[0] & turns[1] & turns[2]
    return inside
