"""How far a student's outputs are from the teacher's: one number, over the places that are image.

An output is `[N, C, H, W]` (a place is a pixel), `[N, T, C]` (a token) or `[N, C]`. Each image's error is the mean over
its valid places of the mean over channels, and the loss is the mean over images, then over outputs: neither the size of
an image's padding nor the batch that it came in changes its weight. Sources: MobileSAM (arXiv 2306.14289) for MSE on
embeddings; EdgeSAM (arXiv 2312.06660, stage 1) for the mask; NanoSAM for Huber.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import InvalidInput, unknown_name

Outputs = Mapping[str, Tensor]
Scales = Mapping[str, Tensor]  # by output: standard deviation of each channel of the teacher, [C]
Loss = Callable[[Outputs, Outputs, Tensor | None], Tensor]
LEAST_SCALE = 1e-3  # of the largest channel's: a channel that hardly varies must not outweigh all others
HUBER_DELTA = 1.0  # in the units of the embedding, as in NanoSAM


def mse(student: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    """Squared error of each place, mean over channels: `[N, C, P]` -> `[N, P]`."""
    return (student - teacher).square().mean(1)


def huber(student: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    """As `mse` below an error of `HUBER_DELTA` (half of it), linear above."""
    return F.huber_loss(student, teacher, reduction="none", delta=HUBER_DELTA).mean(1)


def cosine(student: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    """One less the cosine between the channels of a place; lengths do not count."""
    return 1 - F.cosine_similarity(student, teacher, dim=1)


def whitened(student: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    """As `mse`, each channel in units of its own standard deviation."""
    return ((student - teacher) / scale[:, None]).square().mean(1)


LOSSES = {"mse": mse, "huber": huber, "cosine": cosine, "whitened": whitened}


def loss(name: str, scales: Scales | None = None) -> Loss:
    """A loss by name, in float32 whatever the outputs are.

    It takes the outputs of both by name, and `valid`, bool `[N, H, W]` at any resolution: a pixel of an output counts
    where more than half of it is valid. Outputs that have no pixels count everywhere. `scales` are `channel_scales` of
    the data, for `whitened`; without them those of each batch serve. Raises `UnknownName`; `InvalidInput` where the
    student's outputs have other names or shapes.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)

    def of(student: Outputs, teacher: Outputs, valid: Tensor | None = None) -> Tensor:
        check_outputs(student, teacher)
        known = channel_scales(teacher, valid) if scales is None and name == "whitened" else scales or {}
        levels = [_level(name, student[key], teacher[key], valid, known.get(key)) for key in teacher]
        return torch.stack(levels).mean()

    return of


def check_outputs(student: Outputs, teacher: Outputs) -> None:
    """Raise `InvalidInput` unless both have the same names with the same shapes."""
    wanted = {name: list(tensor.shape) for name, tensor in teacher.items()}
    found = {name: list(tensor.shape) for name, tensor in student.items()}
    if found != wanted:
        raise InvalidInput(f"the student gives {found}, and the teacher {wanted}: give it the outputs of the site")


def channel_scales(teacher: Outputs, valid: Tensor | None) -> dict[str, Tensor]:
    """Standard deviation of every channel over the valid places of all images, none below `LEAST_SCALE` of the most."""
    found = {}
    for name, tensor in teacher.items():
        places = as_places(tensor.float())
        mask = valid_places(tensor, valid)
        kept = places.transpose(1, 2)[mask]  # [valid places of all images, C]
        spread = kept.std(0, correction=0)
        found[name] = spread.clamp(min=max(float(spread.max()) * LEAST_SCALE, torch.finfo(torch.float32).tiny))
    return found


def as_places(output: Tensor) -> Tensor:
    """An output as `[N, C, P]`: channels, then places."""
    if output.dim() == 4:
        return output.flatten(2)
    return output.transpose(1, 2) if output.dim() == 3 else output.reshape(len(output), -1, 1)


def valid_places(output: Tensor, valid: Tensor | None) -> Tensor:
    """Which places of an output count, bool `[N, P]`."""
    if valid is not None and output.dim() == 4:
        share = F.adaptive_avg_pool2d(
            valid.to(output.device, torch.float32)[:, None], (output.shape[2], output.shape[3])
        )
        return share.flatten(1) > 0.5
    places = as_places(output).shape[2]
    return torch.ones(len(output), places, dtype=torch.bool, device=output.device)


def _level(name: str, student: Tensor, teacher: Tensor, valid: Tensor | None, scale: Tensor | None) -> Tensor:
    """Padding is zero on both sides before anything is computed: whatever lies there, NaN too, has no gradient."""
    mask = valid_places(teacher, valid)
    ours, theirs = (as_places(side.float()).masked_fill(~mask[:, None], 0.0) for side in (student, teacher))
    scale = torch.ones(ours.shape[1]) if scale is None else scale
    error = LOSSES[name](ours, theirs, scale.to(ours.device)) * mask
    return (error.sum(1) / mask.sum(1).clamp(min=1)).mean()
