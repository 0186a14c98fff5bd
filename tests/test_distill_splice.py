"""A splice changes the site and nothing else: bit-equal with the teacher's own module, hashes, structure, modes."""

from __future__ import annotations

import collections
import copy
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgekit.distill.architecture.sizing import student
from edgekit.distill.cutting.boundary import Encoder, site_feeds
from edgekit.distill.cutting.site import Site, find_site
from edgekit.distill.cutting.splicing import Adapter, outside_sha256, splice
from edgekit.distill.toy_sam import toy_sam
from edgekit.errors import InvalidInput
from edgekit.model import Model, name_outputs, weights_sha256
from edgekit.source import load

PIXELS = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    fine: Tensor
    coarse: Tensor


FORMS = {
    "tensor": lambda fine, coarse: fine,
    "tuple": lambda fine, coarse: (fine, None, coarse),
    "list": lambda fine, coarse: [coarse, fine],
    "dict": lambda fine, coarse: {"levels": [fine, coarse], "none": None},
    "ordered": lambda fine, coarse: collections.OrderedDict(fine=fine, coarse=coarse),
    "named": Pair,
}
READ = {
    "tensor": lambda result: result,
    "tuple": lambda result: result[0] * result[2].mean(),
    "list": lambda result: result[1] + result.pop(0).mean(),
    "dict": lambda result: result["levels"][0],  # the second is not read
    "ordered": lambda result: next(iter(result.values())) - result["coarse"].sum(),
    "named": lambda result: result.fine + result.coarse.mean(),
}


class Backbone(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.down = nn.Conv2d(8, 16, 3, 2, 1)
        self.form = form

    def forward(self, pixels: Tensor, scale: float = 1.0) -> Any:
        fine = self.stem(pixels) * scale
        return FORMS[self.form](fine, self.down(fine))


class Net(nn.Module):
    """A backbone that says its own form, with a norm, a dropout and a buffer that is in no checkpoint outside of it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.backbone = Backbone(form)
        self.norm, self.drop, self.head = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.register_buffer("offset", torch.ones(1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        found = READ[self.backbone.form](self.backbone(pixels, scale=2.0)).mean((2, 3))
        return self.head(self.drop(self.norm(found))) + self.offset


def net(form: str = "tensor") -> Model:
    torch.manual_seed(0)
    return load(Net(form).eval(), PIXELS)


@pytest.fixture(scope="module")
def sam() -> tuple[Model, Site]:
    model = load(toy_sam(), {"pixel_values": torch.rand(1, 3, 64, 64), "input_points": torch.rand(1, 1, 2, 2) * 64})
    return model, find_site(model, "vision_encoder")


def teacher(model: Model, site: Site) -> Encoder:
    return Encoder(model.module.get_submodule(site.path), site)


def equal(first: Any, second: Any) -> bool:
    one, two = name_outputs(first), name_outputs(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("form", FORMS)
def test_the_teachers_own_module_is_bit_equal_in_every_structure(form: str) -> None:
    model = net(form)
    site = find_site(model, "backbone")
    spliced = splice(model, site, teacher(model, site))
    for pixels in (PIXELS, torch.rand(5, 3, 16, 16)):
        with torch.no_grad():
            assert torch.equal(spliced(pixels), model.module(pixels))
    given, expected = spliced.backbone(PIXELS, scale=2.0), model.module.backbone(PIXELS, scale=2.0)
    assert type(given) is type(expected)
    assert name_outputs(given).keys() == name_outputs(expected).keys()


def test_segment_anything_is_bit_equal_with_points_and_boxes(sam: tuple[Model, Site]) -> None:
    model, site = sam
    spliced = splice(model, site, teacher(model, site))
    with torch.no_grad():
        assert equal(spliced(**model.example), model.module(**model.example))
        inner, own = (whole.get_submodule(site.path) for whole in (spliced, model.module))
        pixels = torch.rand(2, 3, 64, 64)
        result, expected = inner(pixels), own(pixels)
    assert type(result) is type(expected)  # a ModelOutput with attributes
    assert torch.equal(result.last_hidden_state, expected.last_hidden_state)
    assert result.hidden_states is None


def test_a_vision_tower_with_a_frozen_head_is_bit_equal() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=32, patch_size=8, projection_dim=16)  # fmt: skip
    model = load(CLIPVisionModelWithProjection(config).eval(), {"pixel_values": torch.rand(1, 3, 32, 32)})
    site = find_site(model, "vision_model")
    assert {spec.name for spec in site.outputs} >= {"pooler_output"}
    spliced = splice(model, site, teacher(model, site))
    with torch.no_grad():
        assert equal(spliced(**model.example), model.module(**model.example))
    small = splice(model, site, student("npu-conv", site, params=0.9))
    with torch.no_grad():
        assert name_outputs(small(pixel_values=torch.rand(3, 3, 32, 32)))["image_embeds"].shape == (3, 16)


def test_everything_outside_keeps_its_hash_and_the_original_is_untouched() -> None:
    model = net()
    site = find_site(model, "backbone")
    before = weights_sha256(model.module)
    small = student("npu-conv", site, params=5000)
    spliced = splice(model, site, small)
    assert outside_sha256(spliced, "backbone") == outside_sha256(model.module, "backbone")
    with torch.no_grad():  # the copy is a copy
        spliced.head.weight += 1
    assert outside_sha256(spliced, "backbone") != outside_sha256(model.module, "backbone")
    assert weights_sha256(model.module) == before
    assert isinstance(model.module.backbone, Backbone)


@pytest.mark.parametrize("changed", ["head.weight", "norm.running_mean", "norm.num_batches_tracked", "offset"])
def test_the_hash_sees_every_parameter_and_buffer_outside(changed: str) -> None:
    module, other = net().module, net().module
    assert outside_sha256(module, "backbone") == outside_sha256(other, "backbone")
    owner, _, name = changed.rpartition(".")
    with torch.no_grad():
        getattr(other.get_submodule(owner), name).add_(1)
    assert outside_sha256(module, "backbone") != outside_sha256(other, "backbone")


def test_the_hash_does_not_see_the_site_but_names_that_begin_like_it() -> None:
    module, other = net().module, net().module
    with torch.no_grad():
        other.backbone.down.weight.add_(1)
    assert outside_sha256(module, "backbone") == outside_sha256(other, "backbone")
    assert outside_sha256(module, "back") != outside_sha256(other, "back")


def test_all_of_it_is_in_evaluation_mode_and_learning_is_seen_through() -> None:
    model = net()
    site = find_site(model, "backbone")
    small = student("npu-conv", site, params=5000).train()
    spliced = splice(model, site, small)
    assert not any(part.training for part in spliced.modules())
    before = spliced(PIXELS)
    with torch.no_grad():
        small.heads[0].places.bias.add_(1)
    assert not torch.equal(spliced(PIXELS), before)


def test_one_image_and_many_give_the_same_answers(sam: tuple[Model, Site]) -> None:
    model, site = sam
    spliced = splice(model, site, student("npu-conv", site, params=0.2))
    feeds = {name: torch.cat([tensor] * 3) for name, tensor in model.example.items()}
    feeds["pixel_values"] = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together = name_outputs(spliced(**feeds))
        alone = [name_outputs(spliced(**{name: t[index, None] for name, t in feeds.items()})) for index in range(3)]
    for name, answers in together.items():
        assert torch.allclose(answers, torch.cat([one[name] for one in alone]), atol=1e-5)


def test_outputs_that_nothing_reads_are_nan() -> None:
    model = net("dict")
    site = find_site(model, "backbone")
    assert [spec.name for spec in site.outputs] == ["levels.0"]
    result = splice(model, site, teacher(model, site)).backbone(PIXELS, scale=2.0)
    assert result["levels"][1].shape == (1, 16, 4, 4)
    assert bool(result["levels"][1].isnan().all())
    assert result["none"] is None


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.sampled_from(list(FORMS)))
def test_encoders_and_adapters_speak_of_the_same_tensors(batch: int, form: str) -> None:
    model = net(form)
    site = find_site(model, "backbone")
    pixels = torch.rand(batch, 3, 16, 16)
    feeds = site_feeds(model, site, {"pixels": pixels})
    assert feeds.keys() == {"pixels"}
    assert torch.equal(feeds["pixels"], pixels)
    outputs = teacher(model, site)(**feeds)
    assert {name: (batch, *spec.shape[1:]) for name, spec in zip(outputs, site.outputs, strict=True)} == {
        name: tuple(tensor.shape) for name, tensor in outputs.items()
    }


def test_feeds_are_what_reaches_a_site_within_the_model(sam: tuple[Model, Site]) -> None:
    model, _ = sam
    neck = find_site(model, "vision_encoder.neck")
    feeds = site_feeds(model, neck, model.example)
    own = model.module.get_submodule(neck.path)(**feeds)
    whole = model.module.get_submodule(neck.path.removesuffix(".neck"))(model.example["pixel_values"])
    assert torch.equal(own, whole.last_hidden_state)


def test_a_call_that_misses_the_site_is_an_error() -> None:
    class Maybe(Net):
        def forward(self, pixels: Tensor, skip: bool = False) -> Tensor:
            return pixels if skip else super().forward(pixels)

    model = load(Maybe("tensor").eval(), PIXELS)
    site = find_site(model, "backbone")
    with pytest.raises(InvalidInput, match="does not reach its site 'backbone': give all inputs"):
        site_feeds(model, site, {"pixels": PIXELS, "skip": torch.tensor(True)})
    assert not model.module.backbone._forward_pre_hooks


class Wrong(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, pixels: Tensor) -> Any:
        return self.answer(pixels)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x, r"the student's output 'output' is float32\[1, 3, 16, 16\] at batch 1; the site's is "
                      r"'output: float32\[1, 8, 8, 8\]'"),
        (lambda x: torch.zeros(1, 8, 8, 8, dtype=torch.float64), r"'output' is float64\[1, 8, 8, 8\]"),
        (lambda x: {"other": x}, "the student gives other; what the rest reads is 'output: float32"),
        (lambda x: {}, "the student gives nothing"),
        (lambda x: x @ torch.zeros(3, 3), "the student fails at batch 1 of what the site takes by name .pixels"),
        (lambda x: (x, x), "the student returns a tuple"),
    ],
)  # fmt: skip
def test_a_student_that_answers_otherwise_is_refused(answer: Any, message: str) -> None:
    model = net()
    site = find_site(model, "backbone")
    with pytest.raises(InvalidInput, match=message):
        splice(model, site, Wrong(answer).eval())


def test_a_student_that_takes_other_arguments_is_refused() -> None:
    model = net()
    site = find_site(model, "backbone")
    with pytest.raises(InvalidInput, match="unexpected keyword argument 'pixels'"):
        splice(model, site, nn.Conv2d(3, 8, 3, 2, 1))  # takes `input`


def test_a_rest_that_needs_more_than_outputs_is_refused() -> None:
    class Greedy(Net):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) * len(self.backbone.stem)

    model = load(Greedy("tensor").eval(), PIXELS)
    site = find_site(model, "backbone")
    with pytest.raises(InvalidInput, match=r"needs more than the outputs of its site 'backbone': .* attribute 'stem'"):
        splice(model, site, teacher(model, site))


def test_a_spliced_model_is_copied_saved_and_exported_like_any_other(sam: tuple[Model, Site]) -> None:
    model, site = sam
    spliced = splice(model, site, student("repvit", site, params=0.2))
    assert isinstance(spliced.get_submodule(site.path), Adapter)
    again = copy.deepcopy(spliced)
    again.load_state_dict(spliced.state_dict())
    program = torch.export.export(again, (), dict(model.example), strict=False)
    with torch.no_grad():
        assert equal(program.module()(**model.example), spliced(**model.example))
