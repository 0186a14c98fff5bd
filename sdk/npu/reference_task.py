"""What the reference model is trained for: how many shapes a scene has, and in which quarter the largest lies.

An answer is three words: "two top left". The model gives each from the image and the words before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.compression import Progress, silent
from edgekit.dataset import Dataset
from edgekit.distill.scenes import SIDE, Scene, scenes
from edgekit.distill.training.schedule import batch_numbers, learning_rate, parameter_groups
from edgekit.npu.reference_model import LENGTH, WORDS, ReferenceModel

STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP = 900, 32, 4e-3, 0.01, 0.1
SCENES = 6000
MOST_SHAPES = 3
START = WORDS.index("<start>")


@dataclass(frozen=True, eq=False)
class Answered:
    """Scenes with their answers."""

    images: Tensor  # float32 [N, 3, 64, 64], from -1 to 1
    words: Tensor  # int32 [N, 1 + LENGTH]: the start, and the answer

    def dataset(self) -> Dataset:
        """The scenes as inputs of the model, with the right words so far."""
        rows = range(len(self.words))
        images, tokens = self.images.numpy(), self.words[:, :LENGTH].numpy()
        return Dataset("scenes", tuple({"image": images[i : i + 1], "tokens": tokens[i : i + 1]} for i in rows))


def answered(count: int, seed: int) -> Answered:
    """`count` scenes, as many with one shape as with two and three; another seed gives others."""
    kinds = [scenes(-(-count // MOST_SHAPES), MOST_SHAPES * seed + extra, objects=1 + extra)
             for extra in range(MOST_SHAPES)]  # fmt: skip
    made = [scene for row in zip(*kinds, strict=True) for scene in row][:count]
    images = torch.from_numpy(np.stack([scene.image for scene in made])).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Answered(images.contiguous(), torch.tensor([_words(scene) for scene in made], dtype=torch.int32))


def trained(seed: int = 0, *, steps: int = STEPS, progress: Progress = silent) -> ReferenceModel:
    """The model after training, which takes about two minutes on one core."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ReferenceModel()
        _train(model, answered(min(SCENES, BATCH * steps), 1 + seed), steps, seed, progress)
    return model.eval().requires_grad_(False)


def example() -> dict[str, Tensor]:
    """The inputs of one call."""
    sample = answered(1, 0).dataset().samples[0]
    return {name: torch.from_numpy(array) for name, array in sample.items()}


@torch.no_grad()
def accuracy(model: nn.Module, found: Answered) -> tuple[float, ...]:
    """The share of scenes for which each word is right, the words before it being the model's own."""
    said = found.words[:, :1]
    for place in range(LENGTH):
        tokens = functional.pad(said, (0, LENGTH - said.shape[1]))  # what comes later is not seen
        rows = [model(image=found.images[i : i + 1], tokens=tokens[i : i + 1])["logits"] for i in range(len(said))]
        said = torch.cat((said, torch.cat(rows)[:, place].argmax(1, keepdim=True).int()), 1)
    return tuple((said == found.words)[:, 1:].float().mean(0).tolist())


def save(model: nn.Module, folder: Path, count: int = 64) -> None:
    """`model.pt2`, which every verb takes with `-m`, and `scenes.npz`, samples for calibration."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(torch.export.export(model, (), example(), strict=False), folder / "model.pt2")
    samples = answered(count, 0).dataset().samples
    arrays: dict[str, Any] = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    np.savez(folder / "scenes.npz", **arrays)


def _train(model: nn.Module, made: Answered, steps: int, seed: int, progress: Progress) -> None:
    optimiser = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), LEARNING_RATE)
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, LEARNING_RATE, WARMUP)
        rows = batch_numbers(step, BATCH, range(len(made.words)), seed)
        words = made.words[rows]
        logits = model(made.images[rows], words[:, :LENGTH])["logits"]
        loss = functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten().long())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            progress(f"step {step + 1} of {steps}, loss {loss.item():.3f}")


def _words(scene: Scene) -> list[int]:
    """The start, the number of shapes, and the quarter with the middle of what is seen of the largest."""
    largest = scene.masks[scene.masks.sum((1, 2)).argmax()]
    row, column = (places.mean() for places in np.nonzero(largest))
    spoken = (
        WORDS[len(scene.masks)],
        "top" if row < (SIDE - 1) / 2 else "bottom",
        "left" if column < (SIDE - 1) / 2 else "right",
    )
    return [START, *map(WORDS.index, spoken)]
