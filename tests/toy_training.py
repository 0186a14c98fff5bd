"""A task that a student of a few hundred weights learns within a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.distill.training.cache import Embeddings, embeddings
from edgekit.distill.training.data import Images, from_samples
from edgekit.distill.training.fit_options import FitOptions

SHORT = FitOptions(steps=60, batch=8, lr=1e-2, evaluations=6, patience=0, heldout_share=0.1)


class Net(nn.Module):
    """A teacher of `width` channels, and with `noisy` a student that draws random numbers in training."""

    def __init__(self, width: int, *, seed: int, norm: bool = True, noisy: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=not norm)
            self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
            self.drop = nn.Dropout(0.1 if noisy else 0.0)
            self.head = nn.Conv2d(width, 6, 3, 2, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.head(self.drop(self.norm(self.stem(pixels)).relu()))}


def given_images(count: int = 64) -> Images:
    """Blocks of one colour, which are easier to learn from than noise."""
    coarse = np.random.default_rng(0).standard_normal((count, 3, 3, 3)).astype(np.float32)
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return from_samples([{"pixels": fine[i : i + 1]} for i in range(count)])


def task(count: int = 64, store: Any = "ram") -> tuple[Images, Embeddings]:
    images = given_images(count)
    return images, embeddings(Net(24, seed=1), images, store=store, teacher_sha256="a" * 64)


def student(*, seed: int = 2, **options: Any) -> Net:
    return Net(12, seed=seed, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
