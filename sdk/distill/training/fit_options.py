"""How a student is trained, and what happened in training."""

from __future__ import annotations

import math
from typing import Literal, get_args

from edgekit.distill.training.losses import LOSSES
from edgekit.distill.training.precision import TrainingPrecision
from edgekit.errors import InvalidInput, unknown_name
from edgekit.types import Value


class FitOptions(Value, frozen=True, kw_only=True):
    """How to train. The result depends on these, the data and the student, not on how many processes share the work."""

    steps: int = 1000
    batch: int = 32  # images a step, over all processes
    lr: float = 1e-3  # of AdamW, at its peak
    weight_decay: float = 5e-4  # on matrices and kernels
    warmup_share: float = 0.05  # of the steps; then half a cosine to 0
    ema: float = 0.999  # decay of the average of weights, which the student gets; 0: the last weights
    clip_norm: float = 1.0  # of all gradients together; 0: never
    loss: str = "mse"
    precision: TrainingPrecision = "fp32"
    heldout_share: float = 0.05  # of the images, not learnt from; 0: none, and no early stop
    evaluations: int = 20  # of the held-out part over the run, evenly spaced
    patience: int = 5  # evaluations without improvement before it stops; 0: never
    seed: int = 0
    checkpoint_s: float = 30.0  # between checkpoints

    def __post_init__(self) -> None:
        """Raises `InvalidInput` that names the option and what it may be."""
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        if self.precision not in get_args(TrainingPrecision):
            raise unknown_name("precision of training", self.precision, get_args(TrainingPrecision))
        for names, low, high in (
            (("steps", "batch", "evaluations"), 1, math.inf),
            (("weight_decay", "clip_norm", "patience", "checkpoint_s"), 0, math.inf),
            (("warmup_share", "ema", "heldout_share"), 0, 1),
        ):
            for name in names:
                value = getattr(self, name)
                if not low <= value < high:
                    raise InvalidInput(f"{name} must be {low} or more{' and below 1' * (high == 1)}, not {value}")
        if not 0 < self.lr < math.inf:
            raise InvalidInput(f"lr must be above 0, not {self.lr}")


class FitRecord(Value, frozen=True, kw_only=True):
    """What happened in training."""

    steps: int
    seconds: float  # of all runs, where it was interrupted
    images_per_s: float
    loss: tuple[tuple[int, float], ...]  # (steps done, mean loss since the point before)
    heldout: tuple[tuple[int, float], ...]  # (steps done, loss of the averaged weights)
    stopped: Literal["steps", "early"]
    processes: int = 1
