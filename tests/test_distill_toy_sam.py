"""The scenes and the toy teacher that the tests of distillation stand on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")

from edgekit.distill.scenes import LEAST_AREA, MOST_AREA, scenes, write_scenes
from edgekit.distill.toy_sam import pixel_values, save_toy_sam, toy_sam, trained_toy_sam
from edgekit.processing import open_image


def test_scenes_are_the_same_for_a_seed_and_others_for_another() -> None:
    first, again, other = (scenes(3, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("objects", [2, 3])
def test_every_object_of_a_scene_can_be_seen_and_no_two_overlap(objects: int) -> None:
    for scene in scenes(20, 0, objects=objects):
        areas = scene.masks.mean((1, 2))
        assert scene.masks.shape == (objects, 64, 64)
        assert areas.min() >= LEAST_AREA
        assert areas.max() <= MOST_AREA
        assert scene.masks.sum(0).max() == 1


def test_objects_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="40 objects of at least 3% of the image do not fit"):
        scenes(1, 0, objects=40)


def test_written_scenes_are_images_and_label_maps(tmp_path: Path) -> None:
    made = scenes(2, 0)
    write_scenes(made, tmp_path / "images", tmp_path / "truth")
    for number, scene in enumerate(made):
        assert np.array_equal(np.asarray(open_image(tmp_path / f"images/{number:05}.png")), scene.image)
        labels = np.asarray(open_image(tmp_path / f"truth/{number:05}.png"))[..., 0]
        assert np.array_equal(np.stack([labels == 1, labels == 2]), scene.masks)


def test_the_toy_is_of_the_size_it_says_and_its_embeddings_vary() -> None:
    model = toy_sam()
    assert sum(p.numel() for p in model.vision_encoder.parameters()) == 259_008
    assert 400_000 < sum(p.numel() for p in model.parameters()) < 430_000
    with torch.no_grad():
        embeddings = model.vision_encoder(pixel_values(scenes(8, 0)))[0]
    assert embeddings.shape == (8, 64, 8, 8)
    assert embeddings.std(0).mean() > 0.1 * embeddings.std()


def test_training_is_seeded_kept_in_the_cache_and_saved_whole(tmp_path: Path) -> None:
    from transformers import SamModel

    first = trained_toy_sam(1, steps=2, cache=tmp_path / "cache")
    said: list[str] = []
    again = trained_toy_sam(1, steps=2, cache=tmp_path / "cache", progress=said.append)
    assert said == []  # nothing was trained
    save_toy_sam(first, tmp_path / "folder")
    loaded = SamModel.from_pretrained(tmp_path / "folder")
    for other in (again, loaded, trained_toy_sam(1, steps=2)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in first.state_dict().items())
    changed = sum(not torch.equal(p, q) for p, q in zip(first.parameters(), toy_sam(1).parameters(), strict=True))
    assert changed > 50
