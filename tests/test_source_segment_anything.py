"""Segment Anything from a folder and from a factory: it answers like transformers' own forward, with fixed sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.distill.scenes import SIDE
from edgekit.distill.toy_sam import save_toy_sam, toy_sam
from edgekit.errors import InvalidInput
from edgekit.graph import capture
from edgekit.model import Loaded, Model
from edgekit.processing import ImagePreprocess
from edgekit.segmentation import Box, Picture, Point
from edgekit.source import load

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
CLICKS: list[Point] = [(10.0, 20.0, 1), (40.0, 30.0, 0), (12.0, 60.0, 1)]
BOX: Box = (5.0, 6.0, 40.0, 50.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, model = tmp_path_factory.mktemp("sam"), toy_sam()
    with torch.no_grad():
        for weight in model.mask_decoder.parameters():  # as they are drawn, all masks are nearly 0
            weight.mul_(6 if weight.dim() > 1 else 1)
    save_toy_sam(model, made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(str(folder))


@pytest.mark.parametrize(("clicks", "box"), [(1, None), (2, None), (3, None), (0, BOX), (1, BOX), (3, BOX)])
def test_masks_are_those_of_transformers_for_points_and_boxes(model: Model, clicks: int, box: Box | None) -> None:
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert model.segmentation is not None
    prompt = model.segmentation.prompt(CLICKS[:clicks], box)
    named: dict[str, torch.Tensor] = {}
    if clicks:
        named["input_points"] = torch.tensor([[[point[:2] for point in CLICKS[:clicks]]]]).repeat(2, 1, 1, 1)
        named["input_labels"] = torch.tensor([[[point[2] for point in CLICKS[:clicks]]]]).repeat(2, 1, 1)  # type: ignore[misc]
    if box:
        named["input_boxes"] = torch.tensor([[box]]).repeat(2, 1, 1)
    sam = model.module.get_submodule("sam")
    with torch.no_grad():
        expected = sam(pixel_values=pixels, **named)
    feeds = {name: np.repeat(array, 2, axis=0) for name, array in prompt.items()}
    found = model({"pixel_values": pixels.numpy(), **feeds})
    assert np.abs(found["pred_masks"] - expected.pred_masks[:, 0].numpy()).max() < 1e-5
    assert np.abs(found["iou_scores"] - expected.iou_scores[:, 0].numpy()).max() < 1e-5
    spread = found["pred_masks"].std()
    assert spread > 0.01
    assert np.abs(found["pred_masks"][0] - found["pred_masks"][1]).max() > 0.1 * spread


def test_the_model_is_traced_whole_and_is_left_without_hooks(model: Model) -> None:
    assert [str(spec) for spec in model.inputs] == [
        "pixel_values: float32[1, 3, 64, 64]", "input_points: float32[1, 8, 2]", "input_labels: int32[1, 8]",
    ]  # fmt: skip
    assert [str(spec) for spec in model.outputs] == ["pred_masks: float32[1, 3, 32, 32]", "iou_scores: float32[1, 3]"]
    assert capture(model).graph.nodes
    assert not any(module._forward_pre_hooks for module in model.module.modules())


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (64, 64), (17, 300), (1, 500), (130, 131)])
def test_photographs_are_prepared_like_transformers_does(folder: Path, model: Model, size: tuple[int, int]) -> None:
    from PIL import Image

    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = transformers.SamImageProcessorPil.from_pretrained(folder)
    assert isinstance(model.preprocess, ImagePreprocess)
    actual = model.preprocess(photo, {})["pixel_values"]
    height, width = model.preprocess.valid_size(*size)
    if min(size) > 1:  # transformers makes an image of no rows of the thinnest
        expected = processor(Image.fromarray(photo))
        assert tuple(expected["reshaped_input_sizes"][0]) == (height, width)
        assert np.allclose(actual, expected["pixel_values"][0], atol=0.02)
    assert not actual[:, :, height:].any()
    assert not actual[:, :, :, width:].any()
    assert actual[:, :, height - 1, width - 1].any()


@pytest.mark.parametrize("size", [(90, 120), (120, 90), (200, 64)])
def test_a_mask_comes_back_to_the_photograph_as_transformers_brings_it(
    folder: Path, model: Model, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.standard_normal((1, 1, 6, 6)).astype(np.float32))
    logits = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")
    assert isinstance(model.preprocess, ImagePreprocess)
    picture = Picture.of(np.zeros(size), model.preprocess)
    processor = transformers.SamImageProcessorPil.from_pretrained(folder)
    valid = (picture.valid_height, picture.valid_width)
    expected = np.asarray(processor.post_process_masks([logits], [size], [valid])[0])[0, 0]
    actual = picture.mask(logits[0, 0].numpy(), model.preprocess)
    assert actual.shape == size
    assert actual.dtype == bool
    assert 0.1 < expected.mean() < 0.9
    assert (actual == expected).mean() > 0.999


def test_a_factory_may_return_the_model_itself(folder: Path) -> None:
    made = load("edgekit.distill.toy_sam:toy_sam")
    stored = load(str(folder))
    assert made.segmentation == stored.segmentation
    assert made.preprocess == stored.preprocess
    assert made.source.sha256 == load(toy_sam()).source.sha256 != stored.source.sha256  # whose masks are larger


def test_a_factory_may_bring_its_own_preprocessing(tmp_path: Path) -> None:
    plain = ImagePreprocess(input="pixel_values", height=SIDE, width=SIDE, resize="stretch")
    from edgekit.sources._segment_anything import with_prompts

    assert with_prompts(Loaded(module=toy_sam(), preprocess=plain)).preprocess == plain
    wrong = ImagePreprocess(input="pixel_values", height=32, width=SIDE)
    with pytest.raises(InvalidInput, match=r"takes 64 x 64 pixels, and its preprocessing makes 32 x 64"):
        with_prompts(Loaded(module=toy_sam(), preprocess=wrong))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pad": False}, "does not pad to a square"),
        ({"pad_size": {"height": 64, "width": 80}}, "does not pad to a square"),
        ({"pad_size": None}, "does not pad to a square"),
        ({"size": {"longest_edge": 32}, "pad_size": {"height": 32, "width": 32}}, "takes 64 x 64"),
        ({"size": {"longest_edge": -64}, "pad_size": {"height": -64, "width": -64}}, "its size is -64x-64"),
        ({"size": {"longest_edge": "64"}}, "preprocessor_config.json"),
    ],
)
def test_a_preparation_that_does_not_fit_is_refused(
    tmp_path: Path, folder: Path, change: dict[str, object], message: str
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InvalidInput, match=message):
        load(str(tmp_path))
