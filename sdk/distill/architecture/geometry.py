"""What a site asks of a student that sees an image: the sizes of its stages, and the form of every output."""

from __future__ import annotations

import math
from typing import Literal

from edgekit.distill.cutting.site import Site
from edgekit.errors import InvalidInput
from edgekit.types import DType, TensorSpec, Value

FLOATS = ("float16", "bfloat16", "float32", "float64")
Form = Literal["map", "channels_last", "tokens", "vector"]
Size = tuple[int, int]  # height, width
MOST_PREFIX_TOKENS = 8  # class and register tokens before those of the image
LEAST_PLACES = 4  # of a grid; fewer tokens stand for the whole image
COARSEST = 32  # stride of the last stage where outputs are vectors only
LEAST_SIDE = 4  # of that stage
PATCHES = (3, 5, 7)  # odd strides that the stem takes at once; ViT-14 needs 7


class Level(Value, frozen=True, kw_only=True):
    """One output: `channels` at each place of `size`, after `prefix` tokens that stand for the whole image.

    map: [B, C, H, W]. channels_last: [B, H, W, C]. tokens: [B, prefix + H * W, C]. vector: [B, C].
    """

    name: str
    form: Form
    channels: int
    size: Size | None = None  # None: nothing of it belongs to a place in the image
    prefix: int = 0


class Step(Value, frozen=True, kw_only=True):
    """One reduction of the image, and the size after it."""

    stride: int
    size: Size


class Geometry(Value, frozen=True, kw_only=True):
    """The image that comes in, the steps that make it smaller, and the levels that go out."""

    image: str  # the argument's name
    channels: int
    dtype: DType
    stem: Step
    stages: tuple[Step, ...]
    levels: tuple[Level, ...]

    def stage_of(self, level: Level) -> int:
        """The stage that a level is read from: the last one that is not smaller."""
        if level.size is None:
            return len(self.stages) - 1
        return max((i for i, step in enumerate(self.stages) if _covers(step.size, level.size)), default=0)


def geometry(site: Site) -> Geometry:
    """The geometry of a site that takes one image [1, C, H, W] of floats. Raises `InvalidInput` for any other."""
    if len(site.inputs) != 1 or len(site.inputs[0].shape) != 4 or site.inputs[0].dtype not in FLOATS:
        raise InvalidInput(
            f"students by name see one image [1, C, H, W] of floats, and site '{site.path}' takes "
            f"{', '.join(map(str, site.inputs))}: give an nn.Module of your own, or another site"
        )
    (image,) = site.inputs
    _, channels, height, width = (int(size) for size in image.shape)
    levels = tuple(_level(spec, (height, width)) for spec in site.outputs)
    steps = _steps((height, width), sorted({level.size for level in levels if level.size}, reverse=True))
    stem, later = steps[0], steps[1:]
    if not later or any(level.size and not _covers(later[0].size, level.size) for level in levels):
        later = [Step(stride=1, size=stem.size), *later]
    return Geometry(
        image=image.name, channels=channels, dtype=image.dtype, stem=stem, stages=tuple(later), levels=levels
    )


def _level(spec: TensorSpec, image: Size) -> Level:
    _, *shape = (int(size) for size in spec.shape)
    if len(shape) == 3:
        first, second, third = shape
        if _skew(image, (first, second)) < _skew(image, (second, third)):
            return Level(name=spec.name, form="channels_last", channels=third, size=(first, second))
        return Level(name=spec.name, form="map", channels=first, size=(second, third))
    if len(shape) == 2:
        size = _grid(shape[0], image)
        prefix = shape[0] - (size[0] * size[1] if size else 0)
        return Level(name=spec.name, form="tokens", channels=shape[1], size=size, prefix=prefix)
    if len(shape) == 1:
        return Level(name=spec.name, form="vector", channels=shape[0])
    raise InvalidInput(
        f"students by name give maps, tokens or vectors, and the site's output is '{spec}': "
        "give an nn.Module of your own"
    )


def _skew(image: Size, size: Size) -> float:
    """How far a map is from having the image's proportions: 0 where both axes have one stride."""
    return abs(math.log((image[0] / size[0]) / (image[1] / size[1])))


def _grid(tokens: int, image: Size) -> Size | None:
    """The finest grid of the image that leaves only a few tokens over."""
    for stride in range(1, min(image) + 1):
        for size in ((-(-image[0] // stride), -(-image[1] // stride)), (image[0] // stride, image[1] // stride)):
            places = size[0] * size[1]
            if 0 <= tokens - places <= min(places, MOST_PREFIX_TOKENS) and places >= LEAST_PLACES:
                return size
    return None


def _covers(fine: Size, coarse: Size) -> bool:
    return fine[0] >= coarse[0] and fine[1] >= coarse[1]


def _steps(image: Size, targets: list[Size]) -> list[Step]:
    """Reductions that meet each target, or come so near that a resize does the rest."""
    if not targets:
        stride = 2
        while stride < COARSEST and min(image) // (2 * stride) >= LEAST_SIDE:
            stride *= 2
        targets = [(max(1, image[0] // stride), max(1, image[1] // stride))]
    steps, size = list[Step](), image
    for target in targets:
        ratio = round(min(size[0] / target[0], size[1] / target[1]))
        odd = ratio // (ratio & -ratio) if ratio else 1
        if not steps and odd in PATCHES:
            size = (size[0] // odd, size[1] // odd)
            steps.append(Step(stride=odd, size=size))
            ratio //= odd
        for _ in range(round(math.log2(ratio)) if ratio > 1 else 0):
            size = (-(-size[0] // 2), -(-size[1] // 2))
            steps.append(Step(stride=2, size=size))
    return steps or [Step(stride=1, size=image)]
