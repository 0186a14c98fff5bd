"""The images of a run: as they reach the site, in a part to learn from and a part to judge by."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace

import torch

from edgekit.distill.cutting.boundary import site_feeds
from edgekit.distill.cutting.site import Site
from edgekit.distill.training.data import Images
from edgekit.errors import InvalidInput
from edgekit.model import Model
from edgekit.processing import Array, Arrays

LEAST_IMAGES = 4  # to learn from and to judge by
LEAST_JUDGED, MOST_JUDGED = 8, 256


def reaching(model: Model, site: Site, images: Images) -> Images:
    """The images as they reach the site: as they are where it takes the model's own inputs, else through the model."""
    feeds = site_feeds(model, site, model.example)
    names = {id(tensor): name for name, tensor in model.example.items()}
    if all(id(tensor) in names for tensor in feeds.values()):
        taken = {name: names[id(tensor)] for name, tensor in feeds.items()}
        return replace(images, load=lambda index: {to: images[index][name] for to, name in taken.items()})
    alone = threading.Lock()  # a call that ends at the site hooks into the one model there is

    def reach(index: int) -> Arrays:
        given = {name: torch.from_numpy(array) for name, array in images[index].items()}
        with alone:
            found = site_feeds(model, site, {**model.example, **given})
        return {name: tensor.numpy() for name, tensor in found.items()}

    way = f"{images.preprocess_sha256}{site.path}{model.source.sha256}"
    return replace(images, load=reach, preprocess_sha256=hashlib.sha256(way.encode()).hexdigest())


def divided(images: Images, share: float) -> tuple[Images, Images]:
    """Images to learn from and images to judge by, evenly spread; equal ones are taken once."""
    first: dict[str, int] = {}
    for index, key in enumerate(images.keys):
        first.setdefault(key, index)
    distinct = list(first.values())
    if len(distinct) < LEAST_IMAGES:
        raise InvalidInput(f"'{images.origin}' has {len(distinct)} distinct images: {LEAST_IMAGES} is the least")
    count = min(max(round(share * len(distinct)), LEAST_JUDGED), MOST_JUDGED, len(distinct) // 2)
    held = {distinct[i * len(distinct) // count] for i in range(count)}
    learnt = [index for index in distinct if index not in held]
    return _subset(images, learnt), _subset(images, sorted(held))


def _subset(images: Images, indices: Sequence[int]) -> Images:
    return replace(
        images,
        keys=tuple(images.keys[index] for index in indices),
        valid=_Chosen(images.valid, indices),
        load=lambda index: images[indices[index]],
    )


class _Chosen(Sequence["Array | None"]):
    """Some items of a sequence, made when they are asked for."""

    def __init__(self, items: Sequence[Array | None], indices: Sequence[int]) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Array | None:  # type: ignore[override]
        return self._items[self._indices[index]]
