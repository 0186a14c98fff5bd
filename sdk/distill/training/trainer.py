"""Train a student on what the teacher said of every image.

Every random choice is a function of the seed and the step's number (`schedule`), and what else a step needs is in the
checkpoint. So a run that was killed and goes on ends, on a CPU, with the weights it would have had, bit for bit.
"""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import torch
from torch import nn

from edgekit.compression import Progress, silent
from edgekit.distill.training.cache import Embeddings
from edgekit.distill.training.checkpoint import Checkpoint
from edgekit.distill.training.data import Images
from edgekit.distill.training.fit_options import FitOptions, FitRecord
from edgekit.distill.training.loop import Training
from edgekit.distill.training.parallel import processes
from edgekit.errors import InvalidInput
from edgekit.interrupts import stoppable
from edgekit.model import weights_sha256
from edgekit.types import Value

__all__ = ["FitOptions", "FitRecord", "fit"]


class _Run(Value, frozen=True, kw_only=True):
    """Which run a checkpoint is of."""

    options: FitOptions
    student: str
    images: str
    teacher: str


def fit(
    student: nn.Module,
    images: Images,
    embeddings: Embeddings,
    options: FitOptions,
    *,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
    workers: int = 0,
    progress: Progress = silent,
) -> FitRecord:
    """Train in place; the student then holds the averaged weights of its best evaluation, and is in evaluation mode.

    `student(**inputs)` gives the site's outputs by name. With a `folder`, a checkpoint is written there every
    `checkpoint_s` seconds, when Ctrl-C or SIGTERM stops it (as `KeyboardInterrupt`), and at the end; the same call
    goes on from it. Raises `InvalidInput` where the loss stops being finite (the last good checkpoint stays), the
    outputs are not the teacher's, or the folder holds another run.
    """
    if len(images) != len(embeddings):
        raise InvalidInput(f"there are {len(images)} images and {len(embeddings)} embeddings: give those of one set")
    group = processes(device)
    with torch.random.fork_rng([group.device] if group.device.type == "cuda" else []):
        checkpoint = Checkpoint(folder, _run(student, images, embeddings, options)) if folder else None
        training = Training(student, images, embeddings, options, group, workers, progress)
        if checkpoint and (state := checkpoint.load()):
            training.restore(state)
        with stoppable(signal.SIGTERM) as stopped:
            training.run(checkpoint, stopped)
        student.load_state_dict(training.best)
        student.eval()
        return training.record()


def _run(student: nn.Module, images: Images, embeddings: Embeddings, options: FitOptions) -> _Run:
    inputs = "".join((images.preprocess_sha256, *images.keys))
    return _Run(
        options=options,
        student=weights_sha256(student),
        images=hashlib.sha256(inputs.encode()).hexdigest(),
        teacher=embeddings.teacher_sha256,
    )
