"""Is the student as good as its teacher, and better than what costs nothing? Judged on images that it never saw."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.compression import Progress, silent
from edgekit.distill.card import (
    MEAN_EMBEDDING,
    MORE_OF_STAGE_1,
    STUDENT,
    TEACHER,
    UNTRAINED,
    Card,
    Comparison,
    Figures,
    card_of,
)
from edgekit.distill.cutting.boundary import outputs_of
from edgekit.distill.cutting.rest import Rest
from edgekit.distill.cutting.site import Site
from edgekit.distill.fidelity import Errors, Moments, constant, errors, moments, r2, summed
from edgekit.distill.task import Task
from edgekit.distill.training.cache import Embeddings
from edgekit.distill.training.data import Images
from edgekit.errors import InvalidInput, UnsupportedModel
from edgekit.intervals import Interval, student_quantile
from edgekit.model import Model

LEAST_VARIATION = 1e-3  # of embeddings between images, over their variation in all
LEAST_SPREAD = 1e-6  # of embeddings: float32 networks of any use are far above
LEAST_IMAGES = 2  # one tells nothing of what varies between them
QUESTIONS = 4  # for each image without ground truth
Feeds = Mapping[str, Tensor]
Scores = dict[str, dict[str, list[float]]]  # candidate -> kind of prompt -> one an image


def check_teacher(embeddings: Embeddings) -> None:
    """Raise `UnsupportedModel` for a teacher that has nothing to teach: embeddings that are not finite, or constant."""
    _check(moments(embeddings))


def _check(known: Mapping[str, Moments]) -> None:
    for name, found in known.items():
        if not (found.mean.isfinite().all() and found.variance.isfinite().all()):
            raise UnsupportedModel(
                f"the teacher's output '{name}' is NaN or Inf: load other weights, or run it in fp32"
            )
        between = math.sqrt(found.variance.mean())
        overall = math.sqrt(found.variance.mean() + found.mean.var(correction=0))
        if overall < LEAST_SPREAD or between < LEAST_VARIATION * overall:
            raise UnsupportedModel(
                f"the teacher's output '{name}' is the same for every image: its standard deviation is {between:.1e} "
                f"between images and {overall:.1e} in all, so any student would seem to succeed. Load trained weights "
                "(transformers' default SamConfig has initializer_range 1e-10; 0.02 gives embeddings that vary)"
            )


def verify_student(
    model: Model,
    site: Site,
    student: nn.Module,
    images: Images,
    embeddings: Embeddings,
    task: Task,
    *,
    untrained: nn.Module,
    controls: Mapping[str, nn.Module] | None = None,
    truth: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Card:
    """The card of a student on `images`, which it must not have learnt from; `embeddings` are the teacher's of them.

    `untrained` is the student before its first step. `controls` are other students to stand beside it: with one named
    `card.MORE_OF_STAGE_1` the card says whether refinement was worth its steps. `truth` holds what is true of images by
    their key, as `task.read_truth` gives it. Raises `UnsupportedModel` as `check_teacher` does, and `InvalidInput`.
    """
    if len(images) < LEAST_IMAGES:
        raise InvalidInput(f"a student is judged on {LEAST_IMAGES} images or more, not {len(images)}: give more images")
    known = moments(embeddings)
    _check(known)
    candidates = {STUDENT: student, UNTRAINED: untrained, **(controls or {})}
    ready = {name: copy.deepcopy(each).to(device).eval() for name, each in candidates.items()}
    rest = Rest(model, site, task.prompt_inputs)
    rest.module.to(device)
    judge = _Judge(rest, task, known, truth or {}, np.random.default_rng(seed))
    with torch.no_grad():
        for index, key in enumerate(images.keys):
            feeds = {name: torch.from_numpy(array).to(device) for name, array in images[index].items()}
            teacher = {name: tensor.to(device).float() for name, tensor in embeddings[index].items()}
            found = {name: outputs_of(each(**feeds), site) for name, each in ready.items()}
            judge.add(key, teacher, found, images.valid_batch([index]))
            if index % 10 == 0 or index == len(images) - 1:
                progress(f"verify: image {index + 1} of {len(images)}")
    return card_of(
        model=model.name,
        site=site,
        student_params=sum(p.numel() for p in student.parameters()),
        task=task.name,
        metric=task.metric,
        images=len(images),
        images_with_truth=judge.images_with_truth,
        figures={name: judge.figures(name) for name in (*ready, MEAN_EMBEDDING)},
        teacher_quality=judge.teacher_quality(),
        refinement=judge.comparison(MORE_OF_STAGE_1) if MORE_OF_STAGE_1 in ready else None,
    )


@dataclass(eq=False)
class _Judge:
    """Takes one image after the other."""

    rest: Rest
    task: Task
    moments: Mapping[str, Moments]
    truth: Mapping[str, Tensor]
    generator: np.random.Generator
    errors: dict[tuple[str, str], list[Errors]] = field(default_factory=dict)  # by candidate and output
    agreement: Scores = field(default_factory=dict)
    quality: Scores = field(default_factory=dict)
    images_with_truth: int = 0

    def add(self, key: str, teacher: Feeds, found: Mapping[str, Feeds], valid: Tensor | None) -> None:
        """One image: the teacher's embeddings and those of every candidate."""
        mean = {name: constant(self.moments[name].mean, tensor) for name, tensor in teacher.items()}
        candidates = {**found, MEAN_EMBEDDING: mean}
        for name, embedding in candidates.items():
            for output, tensor in teacher.items():
                error = errors(embedding[output], tensor, valid)
                self.errors.setdefault((name, output), []).append(error)
        truth = self.truth.get(key)
        objects = self._objects(teacher, valid) if truth is None else truth
        self.images_with_truth += truth is not None
        for kind in self.task.kinds:
            prompt = self.task.prompt(kind, objects, self.generator)
            answers = {name: self.task.answer(self.rest(each, prompt)) for name, each in candidates.items()}
            theirs = self.task.answer(self.rest(teacher, prompt))
            decided = self.task.decide(theirs)
            for name, answer in answers.items():
                _note(self.agreement, name, kind, self.task.score(answer, decided))
            if truth is not None:
                for name, answer in {**answers, TEACHER: theirs}.items():
                    _note(self.quality, name, kind, self.task.score(answer, truth.to(answer.device)))

    def figures(self, name: str) -> Figures:
        """What one candidate reached; of several outputs the worst."""
        outputs = [summed(parts) for (candidate, _), parts in self.errors.items() if candidate == name]
        channels = [pair for each in outputs for pair in zip(each.squared, each.around_mean(), strict=True)]
        return Figures(
            r2=min(r2(each.squared.sum(), each.around_mean().sum()) for each in outputs),
            cosine=min(each.cosine / each.places for each in outputs),
            worst_channel_r2=min(r2(*pair) for pair in channels),
            agreement=_means(self.agreement[name]),
            quality=_means(self.quality[name]) if name in self.quality else None,
        )

    def teacher_quality(self) -> dict[str, float] | None:
        """The teacher's own score on the truth."""
        return _means(self.quality[TEACHER]) if TEACHER in self.quality else None

    def comparison(self, control: str) -> Comparison:
        """The student's agreement less a control's, image by image over all kinds of prompts, with a 95 % interval."""
        ours, theirs = (np.mean(list(self.agreement[name].values()), axis=0) for name in (STUDENT, control))
        difference = ours - theirs
        mean, spread = float(difference.mean()), float(difference.std(ddof=1))
        half = student_quantile(len(difference) - 1) * spread / math.sqrt(len(difference))
        return Comparison(difference=mean, interval=Interval(low=mean - half, high=mean + half))

    def _objects(self, teacher: Feeds, valid: Tensor | None) -> Tensor:
        """What the teacher sees at random places."""
        area = None if valid is None else valid.expand(QUESTIONS, *valid.shape[1:])
        return self.task.decide(self.task.answer(self.rest(teacher, self.task.places(QUESTIONS, area, self.generator))))


def _note(scores: Scores, name: str, kind: str, found: Tensor) -> None:
    scores.setdefault(name, {}).setdefault(kind, []).append(float(found.mean()))


def _means(scores: Mapping[str, list[float]]) -> dict[str, float]:
    return {kind: float(np.mean(each)) for kind, each in scores.items()}
