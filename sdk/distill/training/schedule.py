"""What a step of training depends on besides the weights: learning rate, batch, weight decay; functions of its number.

Nothing here has a state, so a run that goes on after a kill does the very steps that it would have done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgekit.errors import InvalidInput

EPOCHS = 1 << 20  # more than any run has; keeps the orders of neighbouring seeds apart


def learning_rate(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Linear up to `peak` over the first share of the steps, then half a cosine down to 0 after the last."""
    warmup = round(steps * warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def batch_numbers(step: int, batch: int, items: Sequence[int], seed: int) -> list[int]:
    """The items of a step: all of them in a random order, then in another one, and so on without a gap."""
    first, found = step * batch, list[int]()
    while len(found) < batch:
        epoch, at = divmod(first + len(found), len(items))
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed * EPOCHS + epoch))
        found += [items[i] for i in order[at : at + batch - len(found)].tolist()]
    return found


def split(keys: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers to learn from, at least one, and those that are held out; equal images lie on the same side."""
    distinct = list(dict.fromkeys(keys))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(math.ceil(share * len(distinct)), len(distinct) - 1)
    held = {distinct[i] for i in order[:count]}
    numbers = range(len(keys))
    return [i for i in numbers if keys[i] not in held], [i for i in numbers if keys[i] in held]


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes. Raises `InvalidInput` for none."""
    found = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not found:
        raise InvalidInput("no parameter of the student can be trained: call requires_grad_(True) on what is to learn")
    return found


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; norms and biases, which have one axis, do not. Raises `InvalidInput` for none."""
    return [
        {"params": [p for p in trained(module) if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained(module) if p.dim() <= 1], "weight_decay": 0.0},
    ]


def average_share(step: int, decay: float) -> float:
    """How much of the weights after a step goes into their average: more early on, so that it forgets faster."""
    return 1 - min(decay, (1 + step) / (10 + step))
