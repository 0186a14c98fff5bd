"""Stage 2: the student learns through the frozen rest, and nothing else does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed")

from kernel_devices import needs_gpu
from toy_distillation import (
    CLASSIFIER_SITE,
    SAM_SITE,
    SamStudent,
    classifier,
    classifier_images,
    sam_images,
    sam_model,
    teacher_embeddings,
    twin,
)

from edgekit.distill.cutting.splicing import outside_sha256
from edgekit.distill.refine import RefineOptions, RefineRecord, refine
from edgekit.distill.task import open_task
from edgekit.errors import InvalidInput
from edgekit.model import weights_sha256

FEW = RefineOptions(steps=4, batch=2, questions=2, lr=1e-3)


def refine_sam(student: nn.Module, options: RefineOptions = FEW) -> RefineRecord:
    images, _ = sam_images(4)
    embeddings = teacher_embeddings(sam_model(), SAM_SITE, images)
    return refine(sam_model(), SAM_SITE, student, images, embeddings, open_task(sam_model()), options)


def test_only_the_student_changes() -> None:
    model, student = sam_model(), SamStudent()
    outside, whole, before = (
        outside_sha256(model.module, SAM_SITE.path), weights_sha256(model.module), weights_sha256(student),
    )  # fmt: skip
    record = refine_sam(student)
    assert record.rest_sha256 == outside
    assert weights_sha256(model.module) == whole
    assert weights_sha256(student) != before
    assert not student.training
    assert [step for step, _ in record.loss] == [0, 3]


@needs_gpu
def test_a_student_is_refined_on_a_gpu() -> None:
    images, _ = sam_images(4)
    embeddings, student = teacher_embeddings(sam_model(), SAM_SITE, images), SamStudent()
    before = weights_sha256(student)
    record = refine(sam_model(), SAM_SITE, student, images, embeddings, open_task(sam_model()), FEW, device="cuda")
    assert record.rest_sha256 == outside_sha256(sam_model().module, SAM_SITE.path)
    assert weights_sha256(student) != before


def test_the_same_seed_refines_to_the_same_weights() -> None:
    students = [SamStudent() for _ in range(3)]
    for student, seed in zip(students, (0, 0, 1), strict=True):
        refine_sam(student, RefineOptions(steps=2, batch=2, questions=1, seed=seed))
    first, again, other = map(weights_sha256, students)
    assert first == again
    assert first != other


@pytest.mark.parametrize("task", ["classification", "embedding"])
def test_a_task_without_prompts_brings_the_answers_nearer(task: str) -> None:
    model, images = classifier(), classifier_images(8)
    student = twin(model, CLASSIFIER_SITE)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    embeddings = teacher_embeddings(model, CLASSIFIER_SITE, images)
    options = RefineOptions(steps=60, batch=8, lr=2e-2, pull=0.0)
    record = refine(model, CLASSIFIER_SITE, student, images, embeddings, open_task(model, task), options)
    assert record.loss[-1][1] < 0.3 * record.loss[0][1]


def test_the_pull_keeps_the_embeddings() -> None:
    model, images = classifier(), classifier_images(8)
    embeddings = teacher_embeddings(model, CLASSIFIER_SITE, images)
    drawn = []
    for pull in (0.0, 10.0):
        student = twin(model, CLASSIFIER_SITE)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        options = RefineOptions(steps=60, batch=8, lr=1e-2, pull=pull)
        record = refine(model, CLASSIFIER_SITE, student, images, embeddings, open_task(model), options)
        drawn.append(record.pull[-1][1])
    assert drawn[1] < 0.5 * drawn[0]


class _Broken(SamStudent):
    """Its second call gives NaN."""

    calls = 0

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        found = super().forward(pixel_values)
        return {name: tensor * (float("nan") if self.calls > 1 else 1.0) for name, tensor in found.items()}


def test_a_loss_that_is_no_number_leaves_the_student_of_stage_1() -> None:
    student = _Broken()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(InvalidInput, match="became nan at step 2; the student is as stage 1 left it: lower"):
        refine_sam(student)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert not student.training


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"questions": -1}, "questions must be 1 or more"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"clip_norm": float("inf")}, "clip_norm must be above 0, not inf"),
        ({"pull": -1.0}, "pull must be 0 or more"),
        ({"warmup_share": 1.0}, "warmup_share must be 0 or more and below 1"),
    ],
)
def test_options_out_of_range_are_named(given: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        RefineOptions(**given)
