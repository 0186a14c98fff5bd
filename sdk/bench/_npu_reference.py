"""The reference model: what it learns, how much of it an NPU's rules cover, and what its gated convolutions keep."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgekit.bench._npu_figure import Figure
from edgekit.compression import Progress
from edgekit.npu import reference_task
from edgekit.npu.auditing.audit import audit
from edgekit.npu.gated_conv import GatedConv
from edgekit.npu.reference_model import WIDTH, ReferenceModel
from edgekit.profile import find_device
from edgekit.source import load

DEVICE = "qcom-htp-v68"
UNSEEN, JUDGED = 600, 1000  # scenes, and their seed
CHANCE = (1 / 3, 1 / 2, 1 / 2)  # of each word
LEARNT = 0.2  # above chance, at least
TOKENS, CHUNK = 200, 7


def figures(progress: Progress) -> Iterator[Figure]:
    """Train it, then ask."""
    model = reference_task.trained(progress=progress)
    unseen = reference_task.answered(UNSEEN, JUDGED)
    for name, found, chance in zip(
        ("count", "row", "column"), reference_task.accuracy(model, unseen), CHANCE, strict=True
    ):
        how = f"{UNSEEN} new scenes, chance {chance:.0%}"
        yield Figure(name=f"reference model: {name} is right", value=found, bar=chance + LEARNT, how=how)
    yield from _coverage(model)
    yield Figure(
        name="gated convolution: streamed against whole",
        value=_streamed_apart(model),
        bar=1e-6,
        at_most=True,
        how=f"largest difference, float32, {TOKENS} tokens in chunks of {CHUNK}",
    )


def _coverage(model: ReferenceModel) -> Iterator[Figure]:
    found = audit(load(model, reference_task.example()), find_device(DEVICE))
    for name, share in (("ops", found.coverage_ops), ("MACs", found.coverage_macs)):
        yield Figure(name=f"reference model on {DEVICE}: {name} on the NPU", value=100 * share, unit="%", bar=100,
                     how=found.basis)  # fmt: skip


@torch.no_grad()
def _streamed_apart(model: ReferenceModel) -> float:
    mixers = [layer for layer in model.modules() if isinstance(layer, GatedConv)]
    hidden = torch.randn(1, WIDTH, 1, TOKENS, generator=torch.Generator().manual_seed(0))
    apart = 0.0
    for mixer in mixers:
        state, parts = mixer.state(), []
        for chunk in torch.split(hidden, CHUNK, 3):
            part, state = mixer.stream(chunk, state)
            parts.append(part)
        apart = max(apart, float((torch.cat(parts, 3) - mixer(hidden)).abs().max()))
    return apart
