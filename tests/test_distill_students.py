"""Students meet the site's shapes and the budget, export with static shapes, and answer the same when fused."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgekit import registry
from edgekit.distill.architecture.geometry import geometry
from edgekit.distill.architecture.layers import fused, multiple_of
from edgekit.distill.architecture.sizing import STUDENTS, Student, StudentRecord, rebuild, student
from edgekit.distill.cutting.site import Site
from edgekit.errors import InvalidInput, UnknownName
from edgekit.types import TensorSpec

NAMES = ("npu-conv", "repvit", "tiny-vit")
SAM = (3, 64, 64), [(64, 8, 8)]
TOWER = (3, 56, 56), [(17, 32), (32,)]  # tokens with a class token, stride 14, and a pooled vector


def make_site(
    image: tuple[int, ...], outputs: list[tuple[int, ...]], dtype: Any = "float32", params: int = 100_000
) -> Site:
    return Site(
        path="encoder",
        inputs=(TensorSpec(name="pixels", dtype=dtype, shape=(1, *image)),),
        outputs=tuple(TensorSpec(name=f"level.{i}", dtype=dtype, shape=(1, *shape)) for i, shape in enumerate(outputs)),
        params=params, params_share=0.9, macs=1, macs_share=0.9, time_share=None,
    )  # fmt: skip


def lively(module: nn.Module) -> nn.Module:
    """Every norm and bias away from where it starts, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith(("running_var", "norm.weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
    return module.eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_folder_holds_the_students() -> None:
    assert tuple(name.replace("_", "-") for name in registry.names(STUDENTS)) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("image", "outputs"),
    [
        SAM,
        ((3, 96, 64), [(16, 24, 16), (32, 12, 8), (64, 6, 4)]),  # a pyramid
        ((3, 64, 64), [(8, 32, 32), (16, 16, 16), (24, 2, 2)]),  # from the stem's size on
        TOWER,
        ((3, 56, 56), [(16, 24)]),
        ((1, 32, 32), [(20,)]),
        ((1, 8, 8), [(10,)]),
        ((3, 32, 32), [(8, 8, 24)]),  # channels last
        ((3, 30, 30), [(16, 7, 7)]),  # no stride divides it
        ((3, 16, 16), [(8, 16, 16)]),
        ((3, 16, 16), [(8, 32, 32)]),  # larger than the image
        ((3, 32, 32), [(3, 40)]),  # tokens that are no grid
    ],
)  # fmt: skip
def test_every_form_of_output_is_met(name: str, image: tuple[int, ...], outputs: list[tuple[int, ...]]) -> None:
    small = built(name, make_site(image, outputs))
    for batch in (1, 3):
        with torch.no_grad():
            answers = small(pixels=torch.rand(batch, *image))
        assert {key: tuple(value.shape) for key, value in answers.items()} == {
            f"level.{i}": (batch, *shape) for i, shape in enumerate(outputs)
        }


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(NAMES), st.integers(1, 4), st.integers(1, 70), st.integers(1, 70),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
)  # fmt: skip
def test_any_sizes_are_met(name: str, channels: int, height: int, width: int, levels: list[tuple[int, ...]]) -> None:
    small = built(name, make_site((channels, height, width), levels))
    with torch.no_grad():
        answers = small(pixels=torch.rand(2, channels, height, width))
    assert [tuple(value.shape[1:]) for value in answers.values()] == levels


def built(name: str, site: Site) -> Student:
    """The student of one narrow block a stage, in evaluation mode; its refusal of a wrong size tells the right one."""
    stages = len(geometry(site).stages)
    options = {"widths": (16,) * (stages + 1), "depths": (1,) * stages, "ratio": 2.0}
    with pytest.raises(InvalidInput, match="says 0 parameters; its options make") as refused:
        rebuild(StudentRecord(name=name, options=options, params=0), site)
    params = int(str(refused.value).rpartition(" ")[2])
    return rebuild(StudentRecord(name=name, options=options, params=params), site).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("image", "outputs"), [SAM, TOWER, ((3, 96, 64), [(16, 24, 16), (32, 12, 8), (64, 6, 4)])])
def test_budgets_are_kept_within_ten_percent_and_more_is_never_less(
    name: str, image: tuple[int, ...], outputs: list[tuple[int, ...]]
) -> None:
    site = make_site(image, outputs)
    budgets = [60_000, 123_456, 1_000_000]
    sizes = [count(student(name, site, params=budget)) for budget in budgets]
    assert sizes == sorted(sizes)
    for size, budget in zip(sizes, budgets, strict=True):
        assert 0.9 * budget <= size <= budget


@pytest.mark.parametrize("name", NAMES)
def test_a_share_is_of_the_sites_parameters(name: str) -> None:
    site = make_site(*SAM, params=900_000)
    assert student(name, site, params=0.2).record == student(name, site, params=180_000).record


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_multiples_of_eight(name: str) -> None:
    small = student(name, make_site(*SAM), params=123_456)
    inner = [layer for path, layer in small.named_modules() if isinstance(layer, nn.Conv2d) and "heads" not in path]
    assert inner
    assert all(layer.out_channels % 8 == 0 for layer in inner)


def test_npu_conv_holds_only_what_npus_convolve() -> None:
    small = student("npu-conv", make_site(*SAM), params=100_000)
    leaves = {type(part) for part in small.modules() if not list(part.children())}
    assert leaves == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU6, nn.Identity}
    left = {type(part) for part in fused(small).modules() if not list(part.children())}
    assert left == {nn.Conv2d, nn.ReLU6, nn.Identity}
    program = torch.export.export(fused(small), (), {"pixels": torch.rand(1, *SAM[0])}, strict=False)
    ops = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert ops == {"aten.conv2d.default", "aten.hardtanh.default", "aten.add.Tensor"} or ops == {
        "aten.conv2d.default", "aten.relu6.default", "aten.add.Tensor"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("image", "outputs"), [SAM, TOWER])
def test_fused_answers_are_the_same(name: str, image: tuple[int, ...], outputs: list[tuple[int, ...]]) -> None:
    small = lively(student(name, make_site(image, outputs), params=120_000))
    before = copy.deepcopy(small.state_dict())
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        module = copy.deepcopy(small).to(dtype)
        whole = fused(module.train())  # evaluation mode is fused's own business
        assert not any(part.training for part in whole.modules())
        assert not any(isinstance(part, nn.BatchNorm2d) for part in whole.modules())
        assert count(whole) < count(module)
        pixels = torch.rand(2, *image, dtype=dtype)
        with torch.no_grad():
            expected, actual = module.eval()(pixels=pixels), whole(pixels=pixels)
        for key, value in expected.items():
            assert value.std() > 1e-3  # not a constant
            assert (actual[key] - value).abs().max() <= bound * value.abs().max()
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_one_image_and_many_give_the_same_answers(name: str) -> None:
    small = lively(student(name, make_site(*SAM), params=120_000))
    pixels = torch.rand(4, *SAM[0])
    with torch.no_grad():
        together = small(pixels=pixels)["level.0"]
        alone = torch.cat([small(pixels=image[None])["level.0"] for image in pixels])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5 * float(together.abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("merged", [False, True])
def test_students_export_with_static_shapes(name: str, merged: bool) -> None:
    small = lively(student(name, make_site((3, 56, 56), [(17, 32), (16, 13, 13)]), params=120_000))
    module = fused(small) if merged else small
    feeds = {"pixels": torch.rand(1, 3, 56, 56)}
    program = torch.export.export(module, (), feeds, strict=False)
    values = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert all(isinstance(size, int) for value in values for size in value.shape)
    assert max(value.dim() for value in values) <= 4  # what NPUs take
    with torch.no_grad():
        actual, expected = program.module()(**feeds), small(**feeds)
    for key, value in expected.items():
        assert torch.allclose(actual[key], value, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns(name: str) -> None:
    small = student(name, make_site((3, 56, 56), [(17, 32), (16, 14, 14)]), params=120_000).train()
    answers = small(pixels=torch.rand(2, 3, 56, 56))
    sum(value.square().sum() for value in answers.values()).backward()
    assert [name for name, parameter in small.named_parameters() if parameter.grad is None] == []


def test_seeds_repeat_and_leave_the_global_one_alone() -> None:
    site = make_site(*SAM)
    torch.manual_seed(5)
    first = student("npu-conv", site, params=60_000, seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    second, other = (student("npu_conv", site, params=60_000, seed=seed) for seed in (1, 2))
    weights = [module.get_parameter("stem.conv.weight") for module in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_record_builds_the_same_student_again(name: str) -> None:
    site = make_site(*SAM)
    small = lively(student(name, site, params=120_000))
    record = StudentRecord.from_json(small.record.to_json())
    again = rebuild(record, site).eval()
    again.load_state_dict(small.state_dict())
    pixels = torch.rand(1, *SAM[0])
    with torch.no_grad():
        assert torch.equal(again(pixels=pixels)["level.0"], small(pixels=pixels)["level.0"])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_answers_have_the_sites_dtype(dtype: str) -> None:
    small = student("npu-conv", make_site(*SAM, dtype=dtype), params=60_000).eval()
    with torch.no_grad():
        answer = small(pixels=torch.rand(1, *SAM[0]).to(getattr(torch, dtype)))["level.0"]
    assert str(answer.dtype) == f"torch.{dtype}"


class Neck(nn.Module):
    """As SAM's: channels last in, a map out."""

    def __init__(self, permuted: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 64, 3, padding=1)
        self.permuted = permuted

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(hidden.permute(0, 3, 1, 2) if self.permuted else hidden)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("neck", "outputs"),
    [
        (Neck(), [(64, 8, 8)]),
        (Neck(permuted=False), [(64, 8, 8)]),
        (nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 40)), [(16, 40)]),
        (nn.Linear(24, 10), [(10,)]),
    ],
)
def test_the_teachers_neck_ends_the_student(neck: nn.Module, outputs: list[tuple[int, ...]], train: bool) -> None:
    site = make_site((3, 64, 64), outputs)
    neck.requires_grad_(True)
    small = student("npu-conv", site, params=70_000, neck=neck, train_neck=train).eval()
    with torch.no_grad():
        (answer,) = small(pixels=torch.rand(2, 3, 64, 64)).values()
    assert answer.shape == (2, *outputs[0])
    assert 63_000 <= count(small) == small.record.params <= 70_000
    own = small.heads[0][1]
    assert all(torch.equal(a, b) and a is not b for a, b in zip(own.parameters(), neck.parameters(), strict=True))
    assert {parameter.requires_grad for parameter in own.parameters()} == {train}
    assert all(parameter.requires_grad for parameter in neck.parameters())
    rebuild(small.record, site, neck=neck).load_state_dict(small.state_dict())
    with pytest.raises(InvalidInput, match="student 'npu-conv' was built with the teacher's neck"):
        rebuild(small.record, site)


def test_a_neck_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"the neck, a Linear, does not make 'level.0: float32\[1, 64, 8, 8\]' of 5"):
        student("npu-conv", make_site(*SAM), params=70_000, neck=nn.Linear(5, 9))
    with pytest.raises(InvalidInput, match="the neck, a ReLU, has no weights: leave it out"):
        student("npu-conv", make_site(*SAM), params=70_000, neck=nn.ReLU())
    with pytest.raises(InvalidInput, match="a neck makes one output, and site 'encoder' has 2: leave it out"):
        student("npu-conv", make_site((3, 8, 8), [(4, 4, 4), (4,)]), params=70_000, neck=nn.Linear(5, 9))


@pytest.mark.parametrize(
    ("name", "site", "params", "error", "message"),
    [
        ("npu-cnv", make_site(*SAM), 0.5, UnknownName, "no student is called 'npu-cnv'. Did you mean 'npu-conv'?"),
        (
            "repvit",
            make_site(*SAM),
            100,
            InvalidInput,
            "100 parameters are too few for a student 'repvit' of",
        ),
        ("tiny-vit", make_site(*SAM), 40.5, InvalidInput, "whose smallest has"),
        ("repvit", make_site(*SAM), 0.0, InvalidInput, "0.0 is no size: give a share of the site's parameters (0.1)"),
        ("repvit", make_site(*SAM), float("nan"), InvalidInput, "nan is no size"),
        ("repvit", make_site(*SAM), 1e-9, InvalidInput, "0 parameters are too few"),
        ("npu-conv", make_site(*SAM), 1e12, InvalidInput, "has nearly 1000000000000 parameters; the next smaller one"),
        ("npu-conv", make_site((16, 40), [(64,)]), 0.5, InvalidInput, "students by name see one image [1, C, H, W]"),
        ("npu-conv", make_site((3, 8, 8), [(2, 3, 4, 5)]), 0.5, InvalidInput, "give an nn.Module of your own"),
        ("npu-conv", make_site((3, 8, 8), [(4, 4, 4)], dtype="uint8"), 0.5, InvalidInput, "of floats"),
    ],
)
def test_what_cannot_be_built_is_refused(
    name: str, site: Site, params: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        student(name, site, params=params)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": 7}, "says 7 parameters; its options make"),
        ({"name": "resnet"}, "no student is called 'resnet'"),
        ({"options": {}}, "has options that are no design"),
        ({"options": {"widths": [8, 8], "depths": [1], "ratio": 2.0}}, "has 1 stages, and its site asks for 2"),
        ({"options": {"widths": [8, 8, 10**9], "depths": [1, 1], "ratio": 2.0}}, "<= 16384"),
        ({"options": {"widths": [8, 8, 8], "depths": [1, 10**9], "ratio": 2.0}}, "<= 256"),
        ({"options": {"widths": [8, 8, 8], "depths": [1, 1], "ratio": 1e9}}, "<= 16"),
        ({"options": {"widths": [8, 8, 8], "depths": [1, 1], "ratio": 2.0, "more": 1}}, "unknown field `more`"),
        ({"options": {"widths": [8, 8, 8], "depths": [1, 1], "ratio": 2.0, "neck": "frozen"}}, "built with the"),
    ],
)
def test_records_that_are_nonsense_are_refused(changes: dict[str, Any], message: str) -> None:
    site = make_site(*SAM)
    good = StudentRecord(name="npu-conv", options={"widths": [8, 8, 8], "depths": [1, 1], "ratio": 2.0}, params=1)
    with pytest.raises(InvalidInput) as raised:
        rebuild(msgspec.structs.replace(good, **changes), site)
    assert message in str(raised.value)


@given(st.sampled_from([8, 16]), st.floats(0, 1e4), st.floats(0, 1e4))
def test_rounding_keeps_order_and_is_never_zero(step: int, first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert step <= multiple_of(step, low) <= multiple_of(step, high)
    assert multiple_of(step, high) % step == 0
