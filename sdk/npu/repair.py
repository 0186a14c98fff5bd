"""Teach a changed block to answer as it did before, with the trainer of `edgekit distill`, and say how well it does."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgekit.compression import Progress
from edgekit.distill.training.cache import embeddings
from edgekit.distill.training.data import from_samples
from edgekit.distill.training.fit_options import FitOptions
from edgekit.distill.training.trainer import fit as train
from edgekit.model import weights_sha256
from edgekit.npu.blocks import Block
from edgekit.parity import sqnr_db
from edgekit.processing import Array

REPAIR = FitOptions(
    steps=300, batch=8, lr=5e-4, weight_decay=0.0, ema=0.98, heldout_share=0.1, evaluations=10, patience=0
)
ROWS = 16  # samples that a block computes at once


def repair(
    teacher: Block,
    student: Block,
    weights: Sequence[nn.Parameter],
    learn: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    options: FitOptions,
    progress: Progress,
) -> float:
    """Train these weights of the student in place. Inputs are `[samples, ...]`. Returns dB on those held out.

    Where training made it worse, it is as it was. Raises `InvalidInput` where the loss stops being finite.
    """
    before, state = blocks_db(teacher, student, held), copy.deepcopy(student.state_dict())
    count = len(next(iter(learn.values())))
    images = from_samples([{name: tensor[i : i + 1].numpy() for name, tensor in learn.items()} for i in range(count)])
    answers = embeddings(teacher, images, store="ram", teacher_sha256=weights_sha256(teacher))
    for weight in weights:
        weight.requires_grad_(True)
    try:
        train(student, images, answers, options, progress=progress)
    finally:
        student.requires_grad_(False)
    after = blocks_db(teacher, student, held)
    if not after > before:
        student.load_state_dict(state)
        return before
    return after


def blocks_db(teacher: Block, student: Block, feeds: Mapping[str, Tensor]) -> float:
    """SQNR of a block's worst output against the teacher's, over all samples `[samples, ...]`."""
    count = len(next(iter(feeds.values())))
    parts = [{name: tensor[i : i + ROWS] for name, tensor in feeds.items()} for i in range(0, count, ROWS)]
    with torch.no_grad():
        return worst_db((student(**part) for part in parts), [teacher(**part) for part in parts])


def worst_db(found: Iterable[Mapping[str, Tensor]], right: Sequence[Mapping[str, Tensor]]) -> float:
    """SQNR over all samples, of the output where it is least."""
    rows = list(found)
    return min(sqnr_db(_joined(right, name), _joined(rows, name)) for name in right[0])


def _joined(rows: Sequence[Mapping[str, Tensor]], name: str) -> Array:
    return torch.cat([row[name].flatten() for row in rows]).numpy()
