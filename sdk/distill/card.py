"""The card of a student: what it reached, what the controls reached, and what follows."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgekit.distill.cutting.site import Site
from edgekit.errors import GateMissed
from edgekit.intervals import Interval
from edgekit.types import Value

STUDENT, TEACHER = "student", "teacher"
UNTRAINED, MEAN_EMBEDDING = "untrained student", "mean embedding"
STAGE_1, MORE_OF_STAGE_1 = "stage 1 alone", "more steps of stage 1"
FREE = (UNTRAINED, MEAN_EMBEDDING)  # controls that cost no training
LEAST_GAIN = 0.1  # over an untrained student: below it, the agreement says more of the prompts than of the student


class Figures(Value, frozen=True, kw_only=True):
    """What one candidate reached on images that nothing was trained on."""

    r2: float  # share of the variance of the teacher's channels, over images and places, that is explained
    cosine: float  # mean over places, between the channels of both
    worst_channel_r2: float
    agreement: dict[str, float]  # by kind of prompt: the score against what the teacher decides
    quality: dict[str, float] | None = None  # against the ground truth; None where there is none


class Comparison(Value, frozen=True, kw_only=True):
    """The student's agreement less a control's, over the same questions, with a 95 % interval over images."""

    difference: float
    interval: Interval


class Card(Figures, frozen=True, kw_only=True):
    """The student's own figures, and what they stand beside."""

    model: str
    site: str
    teacher_params: int
    student_params: int
    task: str
    metric: str
    images: int
    images_with_truth: int
    teacher_quality: dict[str, float] | None
    controls: dict[str, Figures]
    refinement: Comparison | None  # against as many more steps of stage 1; None without refinement
    verdicts: tuple[str, ...]

    def require(
        self, *, r2: float | None = None, agreement: float | None = None, quality_share: float | None = None
    ) -> None:
        """Raise `GateMissed` that names every gate the student misses.

        `agreement` is asked of every kind of prompt; `quality_share` is that of the teacher's quality to be kept.
        """
        missed = []
        if r2 is not None and self.r2 < r2:
            missed.append(f"R2 of the embeddings is {self.r2:.3f}, below {r2:g}")
        for kind, found in self.agreement.items():
            if agreement is not None and found < agreement:
                missed.append(f"{self.metric} to the teacher for {kind} is {found:.3f}, below {agreement:g}")
        if quality_share is not None and (self.quality is None or self.teacher_quality is None):
            missed.append("quality was asked for and there is no ground truth: give --truth")
        for kind, found in (self.quality or {}).items():
            whole = (self.teacher_quality or {})[kind]
            if quality_share is not None and found < quality_share * whole:
                least = f"{100 * quality_share:g} % of the teacher's {whole:.3f}"
                missed.append(f"{self.metric} to the truth for {kind} is {found:.3f}, below {least}")
        if missed:
            raise GateMissed(
                f"the student of {self.model} missed: {'; '.join(missed)}. Train it longer, or make it larger"
            )


def card_of(
    *, model: str, site: Site, student_params: int, task: str, metric: str, images: int, images_with_truth: int,
    figures: Mapping[str, Figures], teacher_quality: dict[str, float] | None, refinement: Comparison | None,
) -> Card:  # fmt: skip
    """The card from the figures of all candidates, the student's among them."""
    own = figures[STUDENT]
    card = Card(
        r2=own.r2,
        cosine=own.cosine,
        worst_channel_r2=own.worst_channel_r2,
        agreement=own.agreement,
        quality=own.quality,
        model=model,
        site=site.path,
        teacher_params=site.params,
        student_params=student_params,
        task=task,
        metric=metric,
        images=images,
        images_with_truth=images_with_truth,
        teacher_quality=teacher_quality,
        controls={name: each for name, each in figures.items() if name != STUDENT},
        refinement=refinement,
        verdicts=(),
    )
    return msgspec.structs.replace(card, verdicts=tuple(_verdicts(card)))


def _verdicts(card: Card) -> list[str]:
    return [_on_embeddings(card), *_on_agreement(card), *_on_quality(card), *_on_refinement(card)]


def _on_embeddings(card: Card) -> str:
    return (
        f"The student has {card.student_params / card.teacher_params:.1%} of the teacher's parameters and meets its "
        f"embeddings with R2 {card.r2:.3f} ({card.worst_channel_r2:.3f} in the worst channel); their mean, the same "
        f"for every image, has {card.controls[MEAN_EMBEDDING].r2:.3f}."
    )


def _on_agreement(card: Card) -> list[str]:
    said = []
    for kind, found in card.agreement.items():
        floor, name = max((each.agreement[kind], name) for name, each in card.controls.items() if name in FREE)
        line = (
            f"{kind.capitalize()}: {card.metric} to the teacher {found:.3f}, {found - floor:+.3f} against the {name}."
        )
        if found <= floor:
            line += " It learnt nothing that shows here."
        elif found - floor < LEAST_GAIN:
            line += " Most of this agreement costs no training: judge by another kind of prompt."
        said.append(line)
    return said


def _on_quality(card: Card) -> list[str]:
    if card.quality is None or card.teacher_quality is None:
        return ["Quality: not known, since no ground truth was given (--truth)."]
    said = []
    for kind, found in card.quality.items():
        whole = card.teacher_quality[kind]
        share = f", {found / whole:.1%} of the teacher's {whole:.3f}" if whole else ", and the teacher's is 0"
        said.append(f"{kind.capitalize()}: {card.metric} to the ground truth {found:.3f}{share}.")
    return said


def _on_refinement(card: Card) -> list[str]:
    if card.refinement is None:
        return []
    found, span = card.refinement.difference, card.refinement.interval
    figures = f"{found:+.4f} in {card.metric} to the teacher, 95 % interval {span.low:+.4f} to {span.high:+.4f}"
    if span.low > 0:
        return [f"Refinement was worth it: {figures}, against as many more steps of stage 1."]
    if span.high < 0:
        return [f"Refinement did harm: {figures}, against as many more steps of stage 1. Leave it out."]
    return [f"Refinement does not beat as many more steps of stage 1: {figures}."]
