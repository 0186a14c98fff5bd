"""Sites are modules that the data of their inputs cannot pass by; every other road is found and named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.cli.app import run
from edgekit.distill.cutting.site import Site, find_site, sites
from edgekit.distill.toy_sam import toy_sam
from edgekit.errors import InvalidInput, UnknownName, UnsupportedModel
from edgekit.model import Model
from edgekit.source import load

PIXELS = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def encoder(out: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, out, 3, 2, 1))


class Classifier(nn.Module):
    """Features and a head: `road` is what else happens to the pixels."""

    def __init__(self, road: str = "none") -> None:
        super().__init__()
        self.features = encoder()
        self.side = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8, 5)
        self.road = road
        self.register_buffer("memory", torch.zeros(1, 3, 16, 16))

    def forward(self, pixels: Tensor) -> Tensor:
        seen = torch.zeros(1, 3, 16, 16)
        found = self.features(pixels)
        if self.road == "skip":
            found = found + F.avg_pool2d(self.side(pixels), 4)
        if self.road == "in place":
            seen[:, :1].copy_(pixels[:, 1:2])
            found = found + F.avg_pool2d(seen, 4).sum(1, keepdim=True)
        if self.road == "inner":
            found = found + F.avg_pool2d(self.features[0](pixels), 2)
        if self.road == "weight":
            found = found * self.features[2].weight.mean()
        if self.road == "twice":
            found = self.features(pixels.flip(2)) + found
        if self.road == "buffer":
            self.memory.copy_(pixels)
        if self.road == "shape":  # a size is no data
            found = found / pixels.shape[2] + torch.ones_like(pixels).mean() + pixels.new_full((1,), 2)
        if self.road == "unread":
            found = pixels.new_ones(1, 8, 4, 4) * pixels.mean()
        if self.road == "whole":
            return self.head(found.mean((2, 3))), pixels
        return self.head(found.mean((2, 3)))


def classifier(road: str = "none") -> Model:
    torch.manual_seed(0)
    return load(Classifier(road).eval(), PIXELS)


def by_path(model: Model, **options: Any) -> dict[str, Site]:
    return {site.path: site for site in sites(model, timed=False, **options)}


@pytest.fixture(scope="module")
def sam() -> Model:
    example = {"pixel_values": torch.rand(1, 3, 64, 64), "input_points": torch.rand(1, 1, 2, 2) * 64}
    return load(toy_sam(), example)


@pytest.mark.parametrize("road", ["none", "shape"])
def test_a_classifiers_features_are_a_site(road: str) -> None:
    site = find_site(classifier(road), "features")
    assert [str(spec) for spec in site.inputs] == ["input: float32[1, 3, 16, 16]"]
    assert [str(spec) for spec in site.outputs] == ["output: float32[1, 8, 4, 4]"]
    assert site.params == (3 * 9 + 1) * 8 + (8 * 9 + 1) * 8
    assert site.macs == 27 * 8 * 8 * 8 + 72 * 8 * 4 * 4
    assert site.refused is None


def test_shares_are_of_the_whole_model() -> None:
    model = classifier()
    site = find_site(model, "features")
    total = sum(parameter.numel() for parameter in model.module.parameters())
    assert site.params_share == pytest.approx(site.params / total)
    assert site.macs_share == pytest.approx(site.macs / (site.macs + 8 * 5))


@pytest.mark.parametrize(
    ("road", "reason"),
    [
        ("skip", "'pixels' reaches the outputs past it: conv2d in side (test_distill_site.py:"),
        ("in place", "'pixels' reaches the outputs past it: slice in the model itself (test_distill_site.py:"),
        ("twice", "it is called 2 times in one call of the model"),
        ("weight", "the rest reads its weight 'features.2.weight': mean in the model itself"),
        ("buffer", "'pixels' reaches the outputs past it"),
        ("whole", "'pixels' reaches the outputs past it: it is returned as it is"),
        ("unread", "the model's outputs do not depend on it"),
    ],
)
def test_a_second_road_is_refused_and_named(road: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match="site 'features' cannot be swapped") as error:
        find_site(classifier(road), "features")
    assert reason in str(error.value)


def test_a_part_that_the_rest_calls_again_is_refused() -> None:
    with pytest.raises(InvalidInput) as error:
        find_site(classifier("inner"), "features")
    assert "reaches the outputs past it" in str(error.value)
    assert by_path(classifier("inner"))["features.0"].refused == (
        "it is called 2 times in one call of the model, so its outputs are not one set of tensors"
    )


def test_weights_shared_with_the_rest_are_refused() -> None:
    class Tied(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Conv2d(3, 8, 3)
            self.side.weight = self.features[0].weight

    with pytest.raises(InvalidInput, match=r"its weight 'features.0.weight' is also 'side.weight' of the rest"):
        find_site(load(Tied().eval(), PIXELS), "features")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
def test_roads_are_those_of_a_random_graph(edges: list[tuple[int, int]]) -> None:
    """Layers that each sum some of what was made before: a layer is a site where fixing its output fixes the answer."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in edges)

        def forward(self, x: Tensor) -> Tensor:
            made = [x]
            for layer, (first, second) in zip(self.layers, edges, strict=True):
                made.append(layer(made[-1 - first % len(made)] + made[-1 - second % len(made)]))
            return made[-1]

    torch.manual_seed(0)
    model = load(Graph().eval(), torch.rand(1, 4))
    found = by_path(model)
    for index, layer in enumerate(model.module.layers):
        fixed = layer(torch.ones(1, 4))
        handle = layer.register_forward_hook(lambda *_, fixed=fixed: fixed)
        answers = [model.module(torch.full((1, 4), value)) for value in (0.0, 1.0)]
        handle.remove()
        free = [model.module(torch.full((1, 4), value)) for value in (0.0, 1.0)]
        site = found[f"layers.{index}"]
        only_road = torch.equal(*answers)
        matters = not torch.equal(free[0], answers[0])
        assert (site.refused is None) == (only_road and matters), site.refused


def test_the_encoder_of_segment_anything_is_the_heaviest_site(sam: Model) -> None:
    found = sites(sam, timed=True)
    assert found[0].path.endswith("vision_encoder")
    assert [str(spec) for spec in found[0].outputs] == ["last_hidden_state: float32[1, 64, 8, 8]"]
    assert 0 < (found[0].time_share or 0) < 1
    usable = [site.weight for site in found if site.refused is None]
    assert usable == sorted(usable, reverse=True)
    attention = next(site for site in found if site.path.endswith("vision_encoder.layers.0.attn"))
    assert attention.refused is not None
    assert "'pixel_values' reaches the outputs past it: add in " in attention.refused


def test_several_levels_and_unread_outputs() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(
                [nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)]
            )

        def forward(self, pixels: Tensor) -> dict[str, Any]:
            maps = [pixels]
            for stage in self.stages:
                maps.append(stage(maps[-1]))
            return {"levels": maps[1:3], "last": maps[3], "none": None}

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone()
            self.lateral = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(16, 4, 1)])

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            fine, coarse = self.backbone(pixels)["levels"]
            top = self.lateral[1](coarse)
            return top, self.lateral[0](fine) + F.interpolate(top, scale_factor=2.0)

    site = find_site(load(Detector().eval(), PIXELS), "backbone")
    assert [str(spec) for spec in site.outputs] == ["levels.0: float32[1, 8, 8, 8]", "levels.1: float32[1, 16, 4, 4]"]


def test_constants_are_kept_and_objects_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, pixels: Tensor, scale: Any = 1.0, **more: Any) -> Tensor:
            return self.conv(pixels) * (scale if isinstance(scale, float) else 1.0)

    class Caller(nn.Module):
        def __init__(self, scale: Any) -> None:
            super().__init__()
            self.body = Scaled()
            self.scale = scale

        def forward(self, pixels: Tensor) -> Tensor:
            return self.body(pixels, scale=self.scale, flag=True).mean((2, 3))

    site = find_site(load(Caller(0.5).eval(), PIXELS), "body")
    assert site.constants == {"scale": 0.5, "flag": True}
    assert Site.from_json(site.to_json()) == site
    with pytest.raises(InvalidInput, match="its argument 'scale' is a dict; a site takes tensors and constants"):
        find_site(load(Caller({}).eval(), PIXELS), "body")


def test_unnamed_arguments_and_other_results_are_refused() -> None:
    class Unnamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, *args: Tensor) -> Any:
            return {"image": self.conv(args[0]), "kind": "rgb"}

    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Unnamed()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.body(pixels)["image"].mean((2, 3))

    model = load(Caller().eval(), PIXELS)
    with pytest.raises(InvalidInput, match=r"it takes its arguments as \*args, which have no names"):
        find_site(model, "body")


def test_integer_outputs_are_refused() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.conv(pixels).argmax(1)

    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.table = Tokens(), nn.Embedding(4, 2)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.table(self.body(pixels)).mean((1, 2))

    with pytest.raises(InvalidInput, match="its output 'output' is int64, which cannot be learned by regression"):
        find_site(load(Caller().eval(), PIXELS), "body")


def test_dynamic_sizes_at_the_boundary_are_refused() -> None:
    model = load(Classifier().eval(), PIXELS, dynamic=["batch=1:4"])
    with pytest.raises(InvalidInput, match="has a dynamic size: load the model with fixed sizes, without --dynamic"):
        find_site(model, "features")


def test_a_larger_example_gives_specs_of_one_item() -> None:
    model = load(Classifier().eval(), PIXELS.repeat(3, 1, 1, 1))
    assert find_site(model, "features").outputs == find_site(classifier(), "features").outputs


def test_names_are_paths_or_their_ends() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.other = Classifier(), nn.ModuleList([nn.Linear(5, 5)])

        def forward(self, pixels: Tensor) -> Tensor:
            return self.other[0](self.model(pixels))

    model = load(Wrapped().eval(), PIXELS)
    assert find_site(model, "features").path == "model.features"
    with pytest.raises(InvalidInput, match=r"site '0' may be any of model.features.0, other.0: give the whole path"):
        find_site(model, "0")
    with pytest.raises(
        UnknownName, match=r"no site of this model is called 'featuers'. Did you mean 'model.features'\?"
    ):
        find_site(model, "featuers")
    with pytest.raises(InvalidInput, match="site 'other' is not called by the model, or has no weights"):
        find_site(model, "other")


def test_a_model_without_a_static_graph_is_refused() -> None:
    class Branching(Classifier):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) if pixels.sum() > 0 else super().forward(-pixels)

    model = load(Branching().eval(), PIXELS)
    for ask in (sites, lambda model: find_site(model, "features")):
        with pytest.raises(UnsupportedModel, match=r"torch.export cannot trace") as caught:
            ask(model)
        said = str(caught.value)
        assert re.search(r"test_distill_site.py:\d+: return super\(\).forward\(pixels\) if pixels.sum\(\) > 0", said)
        assert "compute both sides and choose with torch.where. Sites are proven on a trace of the whole model" in said
    assert not model.module.features._forward_hooks


def test_the_model_is_left_as_it_was() -> None:
    model = classifier()
    before = model.module(PIXELS)
    sites(model)
    assert torch.equal(model.module(PIXELS), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, around):
        super().__init__()
        self.features, self.head, self.around = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), around
    def forward(self, pixels):
        found = self.features(pixels).mean((2, 3))
        return self.head(found + pixels.mean() if self.around else found)

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    def forward(self, pixels):
        return pixels * self.scale

def make(): return Net(False).eval(), torch.rand(1, 3, 8, 8)
def around(): return Net(True).eval(), torch.rand(1, 3, 8, 8)
def bare(): return Bare().eval(), torch.rand(1, 3, 8, 8)
"""


def analyze(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["analyze", "-q", "--sites", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_line_shows_sites_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    code, out, _ = analyze(capsys, "-m", f"{tmp_path}/net.py:make")
    assert code == 0
    assert "features  224" in out
    assert "output: float32[1, 8, 6, 6]" in out
    assert f"Next: edgekit distill -m {tmp_path}/net.py:make --site features --student npu-conv" in out
    code, out, _ = analyze(capsys, "-m", f"{tmp_path}/net.py:around", "--json")
    assert code == 0  # the head is still a site
    found = {site["path"]: site for site in json.loads(out)}
    assert found["head"]["refused"] is None
    assert "'pixels' reaches the outputs past it: mean in the model itself (net.py:" in found["features"]["refused"]
    assert analyze(capsys, "-m", f"{tmp_path}/net.py:bare")[0] == 1
    assert analyze(capsys, "-m", f"{tmp_path}/net.py:bare", "--json")[1] == "[]\n"


def test_sites_depend_on_no_format(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = analyze(capsys, "-m", "zoo:none", "--format", "onnx")
    assert code == 2
    assert "leave out --format and --save-repro" in error
