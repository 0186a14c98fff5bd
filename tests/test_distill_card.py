"""The verification of a student, and the card that tells of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed")

import msgspec
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

from edgekit.distill.card import (
    MEAN_EMBEDDING,
    MORE_OF_STAGE_1,
    STUDENT,
    UNTRAINED,
    Card,
    Comparison,
    Figures,
    card_of,
)
from edgekit.distill.card_page import card_page, card_table
from edgekit.distill.cutting.site import Site
from edgekit.distill.task import open_task
from edgekit.distill.training.cache import Embeddings, embeddings
from edgekit.distill.training.data import from_samples
from edgekit.distill.verification import check_teacher, verify_student
from edgekit.errors import GateMissed, InvalidInput, UnsupportedModel
from edgekit.intervals import Interval
from edgekit.source import load
from edgekit.types import TensorSpec


class _Places(nn.Module):
    """Embeddings `[N, 2, 3, 3]` that vary by `overall` between places, and by `between` from image to image."""

    def __init__(self, overall: float, between: float) -> None:
        super().__init__()
        self.overall, self.between = overall, between

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        places = torch.arange(18.0).reshape(1, 2, 3, 3) / 5.2
        return {"output": self.overall * places + self.between * x}


def embedded(module: nn.Module, count: int = 8) -> Embeddings:
    samples = [{"x": np.full((1, 2, 3, 3), (-1.0) ** i, np.float32)} for i in range(count)]
    return embeddings(module, from_samples(samples), store="ram", teacher_sha256="")


def sam_card(student: nn.Module, *, count: int = 6, truth: bool = True, **options: object) -> Card:
    images, made = sam_images(count)
    known = {key: torch.from_numpy(scene.masks) for key, scene in zip(images.keys, made, strict=True)}
    found = teacher_embeddings(sam_model(), SAM_SITE, images)
    return verify_student(
        sam_model(), SAM_SITE, student, images, found, open_task(sam_model()), untrained=SamStudent(1),
        truth=known if truth else None, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def made_card(
    own: Figures, control: Figures, *, refinement: Comparison | None = None, teacher: dict[str, float] | None = None
) -> Card:
    return card_of(
        model="toy", site=SAM_SITE, student_params=40_000, task="segment_anything", metric="mask IoU", images=9,
        images_with_truth=9 if teacher else 0, figures={STUDENT: own, UNTRAINED: control, MEAN_EMBEDDING: control},
        teacher_quality=teacher, refinement=refinement,
    )  # fmt: skip


def figures(agreement: float, quality: float | None = None) -> Figures:
    truth = None if quality is None else {"points": quality}
    return Figures(r2=0.97, cosine=0.98, worst_channel_r2=0.8, agreement={"points": agreement}, quality=truth)


@pytest.mark.parametrize(("overall", "between"), [(1.0, 0.0), (1.0, 1e-4), (1e-20, 1e-20)])
def test_a_teacher_that_says_the_same_of_every_image_is_refused(overall: float, between: float) -> None:
    with pytest.raises(UnsupportedModel, match=r"'output' is the same for every image.*initializer_range 1e-10; 0\.02"):
        check_teacher(embedded(_Places(overall, between)))


def test_a_teacher_that_tells_images_apart_is_taken() -> None:
    check_teacher(embedded(_Places(1.0, 0.01)))


def test_transformers_default_initialisation_is_refused_before_anything_is_judged() -> None:
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8, window_size=4,
                 global_attn_indexes=[0], output_channels=16, mlp_dim=32)  # fmt: skip
    encoder = SamVisionEncoder(SamVisionConfig(**small)).eval()
    for parameter in encoder.parameters():  # as `post_init` of a whole model leaves them
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 1e-10)

    class Plain(nn.Module):
        def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
            return {"last_hidden_state": encoder(pixel_values)[0]}

    found = embeddings(Plain(), sam_images(4)[0], store="ram", teacher_sha256="")
    with pytest.raises(UnsupportedModel, match="the same for every image"):
        check_teacher(found)


def test_a_student_that_is_the_teacher_gets_full_marks_and_a_constant_one_none() -> None:
    card = sam_card(twin(sam_model(), SAM_SITE))
    assert card.r2 == pytest.approx(1, abs=1e-5)  # embeddings are kept in fp16
    assert card.cosine == pytest.approx(1, abs=1e-5)
    assert card.worst_channel_r2 == pytest.approx(1, abs=1e-5)
    assert min(card.agreement.values()) > 0.99
    assert card.quality is not None
    assert card.teacher_quality is not None
    for kind, score in card.teacher_quality.items():
        assert card.quality[kind] == pytest.approx(score, abs=0.01)
    assert 0 < card.controls[MEAN_EMBEDDING].r2 < 0.9
    assert card.controls[UNTRAINED].r2 < 0.2
    assert card.controls[UNTRAINED].agreement["points"] < card.agreement["points"]


def test_figures_are_those_of_the_definition() -> None:
    """R2 of channels and of all, and the cosine, once more in numpy; agreement by hand from the logits."""
    model, images = classifier(), classifier_images(20)
    student = twin(model, CLASSIFIER_SITE)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    found = teacher_embeddings(model, CLASSIFIER_SITE, images)
    card = verify_student(model, CLASSIFIER_SITE, student, images, found, open_task(model), untrained=student)
    batch = images.batch(range(20))
    with torch.no_grad():
        ours = student(**batch)["output"]
        theirs = torch.cat([found[i]["output"] for i in range(20)]).float()
        classes = [torch.relu(each).mean((2, 3)) @ model.module.head.weight.T + model.module.head.bias
                   for each in (ours, theirs)]  # fmt: skip
    s, t = ours.double().numpy(), theirs.double().numpy()
    squared, around = ((s - t) ** 2).sum((0, 2, 3)), ((t - t.mean((0, 2, 3), keepdims=True)) ** 2).sum((0, 2, 3))
    cosine = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert card.r2 == pytest.approx(1 - squared.sum() / around.sum(), rel=1e-6)
    assert card.worst_channel_r2 == pytest.approx(1 - (squared / around).max(), rel=1e-6)
    assert card.cosine == pytest.approx(cosine.mean(), rel=1e-6)
    same = (classes[0].argmax(1) == classes[1].argmax(1)).float().mean().item()
    assert card.agreement == {"images": pytest.approx(same)}
    assert 0 < same < 1


class _Tokens(nn.Module):
    """An encoder of tokens `[N, T, C]`, and logits from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(2), nn.Linear(64, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(torch.relu(self.encoder(pixels)).mean(1))


def test_the_last_axis_of_tokens_is_their_channels() -> None:
    torch.manual_seed(0)
    model = load(_Tokens(), {"pixels": torch.rand(1, 3, 8, 8)})
    site = Site(
        path="encoder", inputs=(TensorSpec(name="input", dtype="float32", shape=(1, 3, 8, 8)),),
        outputs=(TensorSpec(name="output", dtype="float32", shape=(1, 3, 6)),),
        params=390, params_share=0.9, macs=1, macs_share=0.9, time_share=None,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    images = from_samples([{"input": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(5)])
    found = teacher_embeddings(model, site, images)
    card = verify_student(model, site, twin(model, site), images, found, open_task(model), untrained=twin(model, site))
    tokens = torch.cat([found[i]["output"] for i in range(5)]).double().numpy()
    squared = ((tokens - tokens.mean(0)) ** 2).sum((0, 1))
    around = ((tokens - tokens.mean((0, 1))) ** 2).sum((0, 1))
    assert card.r2 == pytest.approx(1, abs=1e-5)
    assert card.controls[MEAN_EMBEDDING].r2 == pytest.approx(1 - squared.sum() / around.sum(), rel=1e-3)
    assert card.controls[MEAN_EMBEDDING].worst_channel_r2 == pytest.approx(1 - (squared / around).max(), rel=1e-3)


def test_one_image_is_too_few_to_judge_on() -> None:
    with pytest.raises(InvalidInput, match="judged on 2 images or more, not 1: give more images"):
        sam_card(SamStudent(), count=1)


def test_what_lies_on_padding_does_not_count() -> None:
    model, images = classifier(), classifier_images(6)
    valid = np.ones((16, 16), bool)
    valid[8:] = False
    padded = replace(images, valid=(valid,) * 6)

    class Wild(nn.Module):
        """The teacher, but for the lower half."""

        def __init__(self) -> None:
            super().__init__()
            self.teacher = twin(model, CLASSIFIER_SITE)

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            found = self.teacher(**inputs)["output"].clone()
            found[:, :, 2:] += 100
            return {"output": found}

    found = teacher_embeddings(model, CLASSIFIER_SITE, images)
    whole, masked = (
        verify_student(model, CLASSIFIER_SITE, Wild(), each, found, open_task(model), untrained=Wild())
        for each in (images, padded)
    )
    assert whole.r2 < -100
    assert masked.r2 == pytest.approx(1, abs=1e-5)
    assert masked.cosine == pytest.approx(1, abs=1e-5)


def test_without_truth_quality_is_absent_with_the_reason() -> None:
    card = sam_card(SamStudent(), truth=False)
    assert card.quality is None
    assert card.teacher_quality is None
    assert card.images_with_truth == 0
    assert "Quality: not known, since no ground truth was given (--truth)." in card.verdicts
    assert set(card.agreement) == {"points", "boxes"}


def test_a_refinement_is_compared_image_by_image_with_more_of_stage_1() -> None:
    same = SamStudent()
    card = sam_card(same, controls={MORE_OF_STAGE_1: copy.deepcopy(same)})
    assert card.refinement == Comparison(difference=0.0, interval=Interval(low=0.0, high=0.0))
    assert card.verdicts[-1].startswith("Refinement does not beat as many more steps of stage 1: +0.0000 in mask IoU")
    worse = sam_card(same, controls={MORE_OF_STAGE_1: twin(sam_model(), SAM_SITE)})
    assert worse.refinement is not None
    assert worse.refinement.interval.high < 0
    assert worse.verdicts[-1].startswith("Refinement did harm")
    assert (
        sam_card(twin(sam_model(), SAM_SITE), controls={MORE_OF_STAGE_1: same})
        .verdicts[-1]
        .startswith("Refinement was worth it: +")
    )


@pytest.mark.parametrize(
    ("own", "control", "said"),
    [
        (0.9, 0.3, "Points: mask IoU to the teacher 0.900, +0.600 against the untrained student."),
        (0.9, 0.85, "Most of this agreement costs no training"),
        (0.5, 0.6, "It learnt nothing that shows here"),
    ],
)
def test_agreement_is_told_beside_what_costs_nothing(own: float, control: float, said: str) -> None:
    assert said in " ".join(made_card(figures(own), figures(control)).verdicts)


def test_gates_name_every_figure_that_misses() -> None:
    card = made_card(figures(0.8, 0.5), figures(0.2, 0.1), teacher={"points": 0.6})
    card.require(r2=0.95, agreement=0.8, quality_share=0.8)
    with pytest.raises(GateMissed) as missed:
        card.require(r2=0.99, agreement=0.9, quality_share=0.95)
    for part in ("R2 of the embeddings is 0.970, below 0.99", "for points is 0.800, below 0.9",
                 "for points is 0.500, below 95 % of the teacher's 0.600"):  # fmt: skip
        assert part in str(missed.value)
    with pytest.raises(GateMissed, match="no ground truth: give --truth"):
        made_card(figures(0.8), figures(0.2)).require(quality_share=0.5)


def test_a_card_survives_json() -> None:
    card = made_card(figures(0.8, 0.5), figures(0.2, 0.1), teacher={"points": 0.6})
    assert Card.from_json(card.to_json()) == card


def test_the_table_has_a_row_for_every_encoder_and_a_cell_for_every_column() -> None:
    columns, rows = card_table(made_card(figures(0.8, 0.5), figures(0.2, 0.1), teacher={"points": 0.6}))
    assert [row[0] for row in rows] == ["student", "untrained student", "mean embedding", "teacher"]
    assert {len(row) for row in rows} == {len(columns)}
    assert rows[0][4:] == ["0.800", "0.500"]
    assert rows[-1][4:] == ["1", "0.600"]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)


def test_the_page_escapes_what_a_model_says_and_has_no_script() -> None:
    card = msgspec.structs.replace(made_card(figures(0.8), figures(0.2)), model="<script>alert(1)</script>")
    page, tags = card_page(card), _Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert "&lt;script&gt;" in page
    assert {"svg", "table"} <= tags.seen
    assert page == card_page(card)
    for verdict in card.verdicts:
        assert verdict.replace("'", "&#x27;") in page
