"""Cutting a model in two graphs: both together answer like the whole, and what cannot be cut is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedModel
from edgekit.graph import capture
from edgekit.source import load
from edgekit.splitting import split


class Levels(nn.Module):
    """An encoder with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deeper = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> dict[str, object]:
        fine = self.conv(image)
        return {"fine": fine, "levels": (self.deeper(fine), None)}


class Net(nn.Module):
    """Takes an image and a number, and reads both levels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Levels(), nn.Linear(10, 5)

    def forward(self, pixels: Tensor, factor: Tensor) -> dict[str, Tensor]:
        found = self.encoder(pixels)
        pooled = torch.cat([found["fine"].mean((2, 3)), found["levels"][0].mean((2, 3))], 1)
        return {"logits": self.head(pooled * factor)}


class Twice(Net):
    def forward(self, pixels: Tensor, factor: Tensor) -> dict[str, Tensor]:
        return {"sum": self.encoder(pixels)["fine"] + self.encoder(pixels)["fine"] * factor.mean()}


class Scaled(Net):
    def forward(self, pixels: Tensor, factor: Tensor) -> dict[str, Tensor]:
        return super().forward(pixels * 2, factor)


EXAMPLE = {"pixels": torch.randn(1, 3, 8, 8), "factor": torch.ones(1, 10)}


def test_both_parts_together_are_the_whole_bit_by_bit() -> None:
    torch.manual_seed(0)
    model = load(Net(), EXAMPLE)
    encoder, rest = split(model, "encoder")
    assert [spec.name for spec in encoder.inputs] == ["pixels"]
    assert [spec.name for spec in encoder.outputs] == ["fine", "levels_0"]
    assert [spec.name for spec in rest.inputs] == ["fine", "levels_0", "factor"]
    assert (encoder.name, rest.name) == ("Net-encoder", "Net-rest")
    rng = np.random.default_rng(0)
    feeds = {"pixels": rng.standard_normal((1, 3, 8, 8)), "factor": rng.standard_normal((1, 10))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    levels = encoder({"pixels": feeds["pixels"]})
    found = rest({**levels, "factor": feeds["factor"]})["logits"]
    assert np.array_equal(found, model(feeds)["logits"])
    assert not np.array_equal(found, rest({**levels, "factor": 2 * feeds["factor"]})["logits"])


def test_both_parts_are_traced_and_share_no_weight() -> None:
    model = load(Net(), EXAMPLE)
    encoder, rest = split(model, "encoder")
    assert set(capture(rest).graph_signature.user_inputs) == {"fine", "levels_0", "factor"}
    assert capture(encoder).graph_signature.user_inputs == ("pixels",)
    assert encoder.weight_bytes + rest.weight_bytes == model.weight_bytes
    assert not model.module.get_submodule("encoder")._forward_hooks


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        (Twice, "encoder", "'encoder' is called 2 times in 'Twice'"),
        (Scaled, "encoder", "takes something else than inputs of 'Scaled'"),
        (Net, "head", "'head' takes something else"),
        (Net, "encoder.deeper", "takes something else"),
    ],
)
def test_a_module_that_is_no_border_is_refused(kind: type[Net], path: str, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        split(load(kind(), EXAMPLE), path)
