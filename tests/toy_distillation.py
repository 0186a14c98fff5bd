"""Models and students small enough to distil within a test."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.distill.cutting.boundary import Encoder
from edgekit.distill.cutting.site import Site
from edgekit.distill.scenes import Scene, scenes
from edgekit.distill.toy_sam import pixel_values, toy_sam
from edgekit.distill.training.cache import Embeddings, embeddings
from edgekit.distill.training.data import Images, from_samples
from edgekit.model import LoadOptions, Model, make_model
from edgekit.source import load
from edgekit.sources._segment_anything import load_segment_anything
from edgekit.types import ModelSource, TensorSpec

if TYPE_CHECKING:
    from transformers import SamModel


@cache
def sam_model() -> Model:
    """The toy SAM, untrained: its embeddings vary with the image and its masks with the prompt."""
    source = ModelSource(kind="module", ref="toy_sam")
    return make_model(source, load_segment_anything(toy_sam(), None), LoadOptions())


def thin_toy_sam() -> SamModel:
    """The toy with a windowed and a global layer of attention in its encoder, and one layer in its decoder."""
    whole = toy_sam()
    config = copy.deepcopy(whole.config)
    config.vision_config.num_hidden_layers, config.vision_config.global_attn_indexes = 2, [1]
    config.mask_decoder_config.num_hidden_layers = 1
    thin = type(whole)(config)
    thin.shared_image_embedding.load_state_dict(whole.shared_image_embedding.state_dict())
    return thin.eval()


SAM_SITE = Site(
    path="sam.vision_encoder",
    inputs=(TensorSpec(name="pixel_values", dtype="float32", shape=(1, 3, 64, 64)),),
    outputs=(TensorSpec(name="last_hidden_state", dtype="float32", shape=(1, 64, 8, 8)),),
    params=259_008, params_share=0.62, macs=17_498_112, macs_share=0.84, time_share=None,
)  # fmt: skip


class Features(nn.Module):
    """An encoder of one convolution, and a linear head on the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(torch.relu(self.encoder(pixels)).mean((2, 3)))


@cache
def classifier() -> Model:
    """Five classes, told from the mean of eight features."""
    torch.manual_seed(0)
    return load(Features(), {"pixels": torch.rand(1, 3, 16, 16)})


CLASSIFIER_SITE = Site(
    path="encoder",
    inputs=(TensorSpec(name="input", dtype="float32", shape=(1, 3, 16, 16)),),
    outputs=(TensorSpec(name="output", dtype="float32", shape=(1, 8, 4, 4)),),
    params=392, params_share=0.9, macs=6144, macs_share=0.99, time_share=None,
)  # fmt: skip


class SamStudent(nn.Module):
    """Three convolutions in the place of the toy's encoder."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 64, 2, stride=2)
        )

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.layers(pixel_values)}


def sam_images(count: int, seed: int = 0) -> tuple[Images, Sequence[Scene]]:
    """Scenes as the toy takes them."""
    made = scenes(count, seed)
    return from_samples([{"pixel_values": one[None].numpy()} for one in pixel_values(made)]), made


def classifier_images(count: int, seed: int = 0) -> Images:
    """Random images."""
    rng = np.random.default_rng(seed)
    return from_samples([{"input": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(count)])


def teacher_embeddings(model: Model, site: Site, images: Images) -> Embeddings:
    """What the model's own encoder says."""
    encoder = Encoder(model.module.get_submodule(site.path), site)
    return embeddings(encoder, images, store="ram", teacher_sha256=model.source.sha256 or "")


def twin(model: Model, site: Site) -> nn.Module:
    """A student that is the teacher."""
    return Encoder(copy.deepcopy(model.module.get_submodule(site.path)).requires_grad_(True), site)
