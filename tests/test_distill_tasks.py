"""How a model's rest is asked, what it answers and how answers compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TwoInputs
from PIL import Image
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")

from toy_distillation import CLASSIFIER_SITE, SAM_SITE, classifier, sam_images, sam_model, teacher_embeddings

from edgekit.distill.cutting.boundary import site_feeds
from edgekit.distill.cutting.rest import Rest
from edgekit.distill.scenes import scenes, write_scenes
from edgekit.distill.task import Task, open_task
from edgekit.errors import InvalidInput, UnknownName
from edgekit.segmentation import HERE, LOWER_RIGHT, NOT_HERE, UNUSED, UPPER_LEFT
from edgekit.source import load


def sam_task() -> Task:
    return open_task(sam_model())


def random_masks(seed: int, count: int, height: int, width: int, share: float) -> Tensor:
    masks = np.random.default_rng(seed).random((count, height, width)) < share
    masks[:, seed % height, seed % width] = True
    return torch.from_numpy(masks)


def test_the_task_is_told_from_the_model() -> None:
    two = load(TwoInputs(), {"tokens": torch.zeros(1, 4, dtype=torch.int64), "offset": torch.rand(1, 8)})
    assert [open_task(model).name for model in (sam_model(), classifier(), two)] == [
        "segment_anything", "classification", "embedding",
    ]  # fmt: skip
    assert open_task(sam_model(), "embedding").name == "embedding"


def test_a_task_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="no model for the task 'segment_anything': leave out --task"):
        open_task(classifier(), "segment_anything")
    with pytest.raises(UnknownName, match="classification"):
        open_task(classifier(), "clasification")


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_the_rest_answers_embeddings_as_the_whole_model_answers_images(kind: str) -> None:
    model, task = sam_model(), sam_task()
    images, made = sam_images(3)
    masks = torch.from_numpy(np.concatenate([scene.masks for scene in made]))  # two questions an image
    prompt = task.prompt(kind, masks, np.random.default_rng(0))
    rest = Rest(model, SAM_SITE, task.prompt_inputs)
    with torch.no_grad():
        pixels = images.batch(range(3))["pixel_values"]
        embedded = {"last_hidden_state": model.module.get_submodule(SAM_SITE.path)(pixels)[0]}
        ours = rest(embedded, prompt)
        whole = model.module(pixels.repeat_interleave(2, 0), **prompt)
        one = rest({"last_hidden_state": embedded["last_hidden_state"][1:2]}, {n: t[2:4] for n, t in prompt.items()})
    for name in ("pred_masks", "iou_scores"):
        assert torch.allclose(ours[name], whole[name], atol=1e-5)
        assert torch.allclose(ours[name][2:4], one[name], atol=1e-5)
    assert ours["pred_masks"].std(0).mean() > 1e-4  # questions differ in their answers


def test_gradients_reach_the_embeddings_and_nothing_of_the_rest() -> None:
    rest = Rest(classifier(), CLASSIFIER_SITE)
    embedded = torch.rand(2, 8, 4, 4, requires_grad=True)
    rest({"output": embedded}, {})["output"].square().sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0
    assert all(p.grad is None for p in rest.module.parameters())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(64, 64), (32, 32), (16, 32)]), st.floats(0, 0.9))
def test_points_lie_on_their_masks_and_boxes_are_tight(seed: int, size: tuple[int, int], share: float) -> None:
    masks = random_masks(seed, 3, *size, share)
    points = sam_task().prompt("points", masks, np.random.default_rng(seed))
    boxes = sam_task().prompt("boxes", masks, np.random.default_rng(seed))
    assert points["input_labels"].tolist() == [[HERE] + [UNUSED] * 7] * 3
    assert boxes["input_labels"].tolist() == [[UPPER_LEFT, LOWER_RIGHT] + [UNUSED] * 6] * 3
    down, across = 64 // size[0], 64 // size[1]
    for mask, (x, y), corners in zip(masks, points["input_points"][:, 0], boxes["input_points"][:, :2], strict=True):
        assert mask[int((y + 0.5) // down), int((x + 0.5) // across)]
        ys, xs = np.nonzero(mask.numpy())
        left, top, right, bottom = corners.flatten().tolist()
        assert (left, top) == (xs.min() * across, ys.min() * down)
        assert (right, bottom) == ((xs.max() + 1) * across - 1, (ys.max() + 1) * down - 1)


def test_random_places_avoid_padding() -> None:
    valid = torch.zeros(50, 64, 64, dtype=torch.bool)
    valid[:, :40, :20] = True
    x, y = sam_task().places(50, valid, np.random.default_rng(0))["input_points"][:, 0].T
    assert x.max() < 20
    assert y.max() < 40
    assert x.unique().numel() > 10


def test_a_harder_prompt_points_at_what_the_student_got_wrong() -> None:
    task, rng = sam_task(), np.random.default_rng(0)
    teacher = torch.zeros(3, 32, 32, dtype=torch.bool)
    teacher[:, 8:16, 8:16] = True
    student = teacher.clone()
    student[0, 8:16, 8:12] = False  # missed a half
    student[1, 20:24, 20:24] = True  # too much
    prompt = task.prompt("points", teacher, rng)
    harder = task.harder(prompt, student, teacher, rng)
    assert harder["input_labels"][:, 1].tolist() == [HERE, NOT_HERE, UNUSED]
    assert torch.equal(harder["input_points"][:, 0], prompt["input_points"][:, 0])
    for row, wrong in ((0, student[0] != teacher[0]), (1, student[1] != teacher[1])):
        x, y = ((harder["input_points"][row, 1] + 0.5) // 2).int().tolist()
        assert wrong[y, x]
    for _ in range(10):  # the places fill up, and then the prompt stays as it is
        harder = task.harder(harder, student, teacher, rng)
    assert harder["input_labels"].shape == (3, 8)
    assert (harder["input_labels"][0] == HERE).all()


def test_mask_iou_counts_pixels_at_the_resolution_of_the_reference() -> None:
    task = sam_task()
    reference = torch.zeros(4, 4, 4, dtype=torch.bool)
    reference[:3, :2] = True
    answer = torch.where(reference, 1.0, -1.0)
    answer[1] *= -1
    answer[2, 1] = -1.0
    assert task.score(answer, reference).tolist() == [1.0, 0.0, 0.5, 1.0]  # the last two are both empty
    large = reference.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert task.score(answer, large)[0] == 1.0


def test_a_model_answers_with_its_own_best_mask_and_learns_the_teachers() -> None:
    task = sam_task()
    masks = torch.stack([torch.full((1, 4, 4), value) for value in (-3.0, 2.0, 5.0)], 1)
    own = {"pred_masks": masks, "iou_scores": torch.tensor([[0.1, 0.9, 0.3]])}
    teacher = {"pred_masks": masks, "iou_scores": torch.tensor([[0.9, 0.1, 0.3]])}
    assert task.answer(own).unique().tolist() == [2.0]
    assert task.answer(teacher).unique().tolist() == [-3.0]
    right, wrong = task.loss(own, teacher), task.loss(own | {"pred_masks": -masks}, teacher)
    assert 0 < right < wrong


def test_label_maps_are_read_as_the_masks_that_they_were_written_from(tmp_path: Path) -> None:
    made = scenes(2, 0)
    write_scenes(made, tmp_path / "images", tmp_path / "truth")
    images = {f"key{i}": tmp_path / f"images/{i:05}.png" for i in range(2)}
    found = sam_task().read_truth(images, tmp_path / "truth", sam_model())
    for index, scene in enumerate(made):
        assert torch.equal(found[f"key{index}"], torch.from_numpy(scene.masks))


def test_a_label_map_goes_through_the_models_resize_and_padding(tmp_path: Path) -> None:
    labels = np.zeros((64, 128), np.uint8)
    labels[:, :64] = 7
    labels[:, 64:96] = 255  # no object
    labels[0, 127] = 9  # too small to be asked for
    (tmp_path / "truth").mkdir()
    Image.fromarray(labels).save(tmp_path / "truth/a.png")
    Image.new("RGB", (128, 64)).save(tmp_path / "a.jpg")
    masks = sam_task().read_truth({"a": tmp_path / "a.jpg"}, tmp_path / "truth", sam_model())["a"]
    expected = np.zeros((1, 64, 64), bool)
    expected[0, :32, :32] = True  # half the size, and the lower half is padding
    assert np.array_equal(masks.numpy(), expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a png", "cannot read the label map"),
        (None, "has 5 x 4 pixels and its image 8 x 8"),
    ],
)
def test_a_bad_label_map_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    (tmp_path / "truth").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    if content is None:
        Image.new("L", (5, 4)).save(tmp_path / "truth/a.png")
    else:
        (tmp_path / "truth/a.png").write_bytes(content)
    with pytest.raises(InvalidInput, match=said):
        sam_task().read_truth({"a": tmp_path / "a.png"}, tmp_path / "truth", sam_model())


def test_no_ground_truth_at_all_is_refused(tmp_path: Path) -> None:
    images = {"a": tmp_path / "a.png"}
    with pytest.raises(InvalidInput, match="is no folder: give a folder with a PNG"):
        sam_task().read_truth(images, tmp_path / "none", sam_model())
    with pytest.raises(InvalidInput, match="label map for none of 1 images"):
        sam_task().read_truth(images, tmp_path, sam_model())
    with pytest.raises(InvalidInput, match="no ground truth is known for the task 'embedding'"):
        open_task(sam_model(), "embedding").read_truth(images, tmp_path, sam_model())


def test_classes_are_compared_by_number_and_read_from_a_table(tmp_path: Path) -> None:
    task, table = open_task(classifier()), tmp_path / "labels.csv"
    logits = torch.tensor([[0.0, 2, 1, 0, 0], [3.0, 0, 0, 0, 0]])
    assert task.decide(task.answer({"output": logits})).tolist() == [1, 0]
    assert task.score(logits, torch.tensor([1, 1])).tolist() == [1.0, 0.0]
    assert task.loss({"output": logits}, {"output": logits}).abs() < 1e-6
    assert task.loss({"output": logits.flip(0)}, {"output": logits}) > 0.1
    table.write_text("a.png,4\nelsewhere.png,0\n\nb.png, 2\n", encoding="utf-8")
    found = task.read_truth({"x": Path("a.png"), "y": Path("b.png")}, table, classifier())
    assert {key: label.tolist() for key, label in found.items()} == {"x": [4], "y": [2]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.png,5\n", "line 1 .*: '5' is none of the model's 5 classes"),
        ("a.png,1\nb.png,cat\n", "line 2 .*: 'cat' is none of the model's 5 classes"),
        ("a.png\n", "line 1 .* has 1 columns: write FILE,CLASS"),
        ("a.png,1,2\n", "has 3 columns"),
        ("a.png,-1\n", "'-1' is none"),
    ],
)
def test_a_bad_row_of_labels_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=said):
        open_task(classifier()).read_truth({"x": Path("a.png")}, tmp_path / "labels.csv", classifier())


def test_labels_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("binary.csv", "missing.csv"):
        with pytest.raises(InvalidInput, match="as rows of FILE,CLASS"):
            open_task(classifier()).read_truth({}, tmp_path / name, classifier())


def test_embeddings_are_compared_by_their_cosine() -> None:
    task = open_task(sam_model(), "embedding")
    outputs = {"a": torch.tensor([[1.0, 0.0]]), "ids": torch.tensor([[3]]), "b": torch.tensor([[[2.0]]])}
    assert task.answer(outputs).tolist() == [[1.0, 0.0, 2.0]]
    assert task.score(task.answer(outputs), 3 * task.answer(outputs)).tolist() == [pytest.approx(1.0)]
    assert task.loss(outputs, outputs).abs() < 1e-6
    assert task.prompt("images", torch.zeros(1), np.random.default_rng(0)) == {}


def test_the_toys_site_is_the_one_written_down_here() -> None:
    feeds = site_feeds(sam_model(), SAM_SITE, sam_model().example)
    assert {name: tuple(tensor.shape) for name, tensor in feeds.items()} == {"pixel_values": (1, 3, 64, 64)}
    found = teacher_embeddings(sam_model(), SAM_SITE, sam_images(1)[0])[0]
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"last_hidden_state": (1, 64, 8, 8)}
