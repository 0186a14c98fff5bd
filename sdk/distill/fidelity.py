"""How well embeddings are met: moments of the teacher's, and the errors of a student's, summed over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.distill.training.cache import Embeddings
from edgekit.distill.training.losses import as_places, valid_places


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one output over images: mean and variance of every channel at every place, float64 `[C, P]`."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class Errors:
    """Sums over images of one output: of what a candidate misses, and of the teacher's own values."""

    squared: Tensor  # float64 [C]
    total: Tensor  # of the teacher's values, float64 [C]
    power: Tensor  # of their squares
    cosine: float
    places: int

    def around_mean(self) -> Tensor:
        """Squares around each channel's mean over images and places, [C]."""
        return self.power - self.total.square() / self.places


def moments(embeddings: Embeddings) -> dict[str, Moments]:
    """Over all images, one after the other."""
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for index in range(len(embeddings)):
        for name, tensor in embeddings[index].items():
            places = as_places(tensor).double()[0]
            first, second = sums.get(name, (0.0, 0.0))
            sums[name] = (first + places, second + places.square())
    count = len(embeddings)
    means = {name: first / count for name, (first, _) in sums.items()}
    return {
        name: Moments(means[name], (second / count - means[name].square()).clamp(min=0))
        for name, (_, second) in sums.items()
    }


def constant(mean: Tensor, like: Tensor) -> Tensor:
    """Means `[C, P]` as an embedding of one image."""
    places = mean[None].to(like.device, like.dtype)
    return places.reshape(like.shape) if like.dim() != 3 else places.transpose(1, 2)


def errors(found: Tensor, teacher: Tensor, valid: Tensor | None) -> Errors:
    """Of one image `[1, ...]`, over the places that are no padding."""
    mask = valid_places(teacher, valid)[0]
    ours, theirs = (as_places(tensor)[0].double()[:, mask] for tensor in (found, teacher))
    cosine = functional.cosine_similarity(ours, theirs, dim=0)
    return Errors(
        squared=(ours - theirs).square().sum(1),
        total=theirs.sum(1),
        power=theirs.square().sum(1),
        cosine=float(cosine.sum()),
        places=int(mask.sum()),
    )


def summed(parts: Sequence[Errors]) -> Errors:
    """Of several images together."""
    return Errors(
        squared=torch.stack([each.squared for each in parts]).sum(0),
        total=torch.stack([each.total for each in parts]).sum(0),
        power=torch.stack([each.power for each in parts]).sum(0),
        cosine=sum(each.cosine for each in parts),
        places=sum(each.places for each in parts),
    )


def r2(squared: Tensor, around_mean: Tensor) -> float:
    """Share of the variance that is explained; a channel that never varies counts where it is met."""
    if float(around_mean) <= 0.0:
        return 1.0 if float(squared) == 0.0 else 0.0
    return float(1 - squared / around_mean)
