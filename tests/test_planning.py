"""Which passes, format and precision are chosen, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from edgekit import registry
from edgekit.compiling import COMPILERS
from edgekit.errors import InvalidInput, PlanInfeasible, UnknownName
from edgekit.graph import attention_ops, capture
from edgekit.passes.float16 import Float16
from edgekit.passes.int8_static import Int8Static
from edgekit.planning import EXPORTERS, RECIPES, Plan, check_plan, plan, require_fit
from edgekit.profile import DeviceProfile, device_ids, find_device
from edgekit.source import load

MODELS = Path(__file__).parent / "models.py"


@pytest.fixture(scope="module")
def conv() -> ExportedProgram:
    return capture(load(f"{MODELS}:small_conv"))


@pytest.fixture(scope="module")
def attention() -> ExportedProgram:
    import torch

    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x @ x.transpose(1, 2), -1) @ x

    return capture(load(Attention().eval(), torch.randn(1, 5, 8)))


EXPORTED = ("executorch", "onnx", "tflite")
SERVED = [d for d in device_ids() if any(c.format in EXPORTED for c in find_device(d).runtime)]
DRIVEN = [d for d in device_ids() if any(c.compiler and c.compiler.name == "vela" for c in find_device(d).runtime)]
COMPILED = sorted(set(device_ids()) - set(SERVED) - set(DRIVEN))


@pytest.fixture
def no_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the tools of any device's vendor."""
    for name in registry.names(COMPILERS):
        monkeypatch.setattr(registry.load(COMPILERS, name), "missing", lambda: "its tool is not here: make it so")


@pytest.fixture
def all_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with all of them; a plan only asks."""
    for name in registry.names(COMPILERS):
        monkeypatch.setattr(registry.load(COMPILERS, name), "missing", lambda: None)


@pytest.mark.parametrize("device", SERVED)
@pytest.mark.usefixtures("no_compilers")
def test_a_device_gets_a_plan_for_the_first_runtime_edgekit_exports_for(device: str, conv: ExportedProgram) -> None:
    profile = find_device(device)
    made = plan(conv, profile, calibrated=True)
    served = [choice for choice in profile.runtime if choice.format in EXPORTED]
    passed_over = profile.runtime.index(served[0])
    assert made.format == served[0].format
    assert made.passes == RECIPES[made.precision]
    assert [reason.split()[0] for reason in made.reasons[passed_over:]] == ["format", "precision"]
    for choice, reason in zip(profile.runtime[:passed_over], made.reasons, strict=False):
        ours = choice.compiler is not None and choice.compiler.name in registry.names(COMPILERS)
        said = "its tool is not here: make it so" if ours else f"edgekit does not write {choice.format}"
        assert said in reason
    assert made.precision == ("fp16" if profile.unit_of(served[0]).fast_dtypes[0] == "float16" else "int8")
    check_plan(made)


@pytest.mark.parametrize("device", DRIVEN)
def test_a_compiler_that_edgekit_runs_gets_what_it_reads(device: str, conv: ExportedProgram) -> None:
    made = plan(conv, find_device(device), calibrated=True)
    assert (made.format, made.precision, made.compiler) == ("tflite", "int8", "vela")
    assert made.options == {"integer_io": True, "layout": "NHWC"}
    assert made.reasons[0] == f"format tflite: vela makes vela of it for {find_device(device).title}"
    assert Plan.from_json(made.to_json()) == made
    asked = plan(conv, find_device(device), calibrated=True, options=["layout=NCHW"])
    assert asked.options == {"integer_io": True, "layout": "NCHW"}


@pytest.mark.parametrize("device", COMPILED)
def test_a_device_that_only_its_vendors_compiler_serves_is_refused_with_the_export_that_feeds_it(
    device: str, conv: ExportedProgram
) -> None:
    profile = find_device(device)
    compiler = profile.runtime[0].compiler
    assert compiler is not None
    with pytest.raises(PlanInfeasible) as refusal:
        plan(conv, profile, calibrated=True)
    asked = f"export with --format {compiler.reads} --precision {compiler.precision} and give that to {compiler.name}"
    assert asked in str(refusal.value)
    fed = plan(conv, profile, format=compiler.reads, calibrated=True)
    assert (fed.format, fed.precision) == (compiler.reads, compiler.precision)
    assert fed.reasons[0].endswith(f"asked for; {compiler.name} makes {profile.runtime[0].format} of it")


def test_a_compiler_that_takes_int8_only_gets_no_float_model_unasked(conv: ExportedProgram) -> None:
    npu = find_device("ethos-u55-128")
    with pytest.raises(PlanInfeasible, match="vela takes int8 models, and int8 needs samples: give --calibration"):
        plan(conv, npu, format="tflite")
    made = plan(conv, npu, format="tflite", precision="fp32")
    assert (made.precision, made.compiler, made.options) == ("fp32", None, {})


@pytest.mark.usefixtures("no_compilers")
def test_an_npu_beside_a_cpu_whose_compiler_is_missing_is_named_and_the_cpu_gets_the_plan(
    conv: ExportedProgram,
) -> None:
    made = plan(conv, find_device("rk3588"), calibrated=True)
    assert (made.format, made.precision, made.compiler) == ("onnx", "int8", None)
    assert made.reasons[0] == "unserved npu: its tool is not here: make it so"
    assert made.reasons[1] == "format onnx: onnxruntime serves the cpu of Rockchip RK3588"


@pytest.mark.parametrize(
    ("device", "format", "found"),
    [
        ("rk3588", "auto", ("onnx", "fp32", "rknn", {"opset": 18})),
        ("iphone15-pro", "auto", ("onnx", "fp16", "coreml", {})),
        ("iphone15-pro", "executorch", ("executorch", "int8", None, {})),
        ("ethos-u85-256", "executorch", ("executorch", "int8", "executorch_arm", {})),
        ("ethos-u55-128", "executorch", ("executorch", "int8", "executorch_arm", {})),
    ],
)
@pytest.mark.usefixtures("all_compilers")
def test_an_npu_whose_compiler_is_here_gets_the_plan(
    device: str, format: str, found: tuple[Any, ...], conv: ExportedProgram
) -> None:
    made = plan(conv, find_device(device), format=format, calibrated=True)
    assert (made.format, made.precision, made.compiler, made.options) == found


@pytest.mark.usefixtures("all_compilers")
def test_a_precision_that_the_compiler_does_not_take_leaves_it_out(conv: ExportedProgram) -> None:
    phone = find_device("iphone15-pro")
    for precision, compiler in (("fp16", "coreml"), ("fp32", "coreml"), ("int8", None)):
        assert plan(conv, phone, precision=precision, calibrated=True).compiler == compiler


def test_a_convolution_net_is_int8_on_a_board_when_there_are_samples(conv: ExportedProgram) -> None:
    board = find_device("raspberrypi5")
    assert plan(conv, board, calibrated=True).precision == "int8"
    without = plan(conv, board, calibrated=False)
    assert without.precision == "fp32"
    assert "--calibration" in without.reasons[1]


def test_attention_is_dynamic_on_a_board_and_half_on_a_gpu(attention: ExportedProgram) -> None:
    assert plan(attention, find_device("raspberrypi4")).precision == "int8-dynamic"
    assert plan(attention, find_device("h200")).precision == "fp16"


@pytest.mark.parametrize("device", ["h200", "rtx4090", "jetson-orin-nano"])
def test_a_plan_for_a_gpu_says_where_edgekit_runs_it(device: str, conv: ExportedProgram) -> None:
    made = plan(conv, find_device(device))
    assert made.format == "onnx"
    assert made.reasons[0].endswith("edgekit itself runs and measures it on the CPU beside it")


@pytest.mark.parametrize("device", device_ids())
def test_the_first_word_of_every_reason_names_what_was_decided(device: str, conv: ExportedProgram) -> None:
    profile = find_device(device)
    served = [choice for choice in profile.runtime if choice.format in registry.names(EXPORTERS)]
    if served:
        reasons = plan(conv, profile, calibrated=True).reasons
        assert {reason.split()[0] for reason in reasons} <= {"unserved", "format", "precision"}


def test_other_words_for_a_precision_are_understood_and_wrong_ones_get_the_nearest(conv: ExportedProgram) -> None:
    board = find_device("raspberrypi5")
    assert plan(conv, board, precision="w8a8").precision == "int8"
    with pytest.raises(UnknownName, match=r"Did you mean 'fp16'\?.*int8-dynamic"):
        plan(conv, board, precision="pf16")


def test_a_device_without_a_runtime_we_export_for_is_refused(conv: ExportedProgram) -> None:
    board = msgspec.structs.replace(find_device("raspberrypi5"), runtime=())
    with pytest.raises(PlanInfeasible, match=r"served by no runtime.*exporters for executorch, onnx, tflite"):
        plan(conv, board)


@pytest.mark.parametrize(
    ("precision", "passes"),
    [("fp32", (Float16(),)), ("fp16", ()), ("int8", (Float16(),)), ("int8", (Int8Static(), Float16()))],
)
def test_a_plan_whose_passes_make_other_numbers_is_refused(precision: str, passes: tuple[object, ...]) -> None:
    with pytest.raises(InvalidInput, match=f"the plan says precision {precision}, and its passes make"):
        check_plan(Plan(device="x", format="onnx", precision=precision, passes=passes))  # type: ignore[arg-type]


def test_the_tighter_limit_is_the_one_that_is_named() -> None:
    board: DeviceProfile = find_device("raspberrypi-zero2w")
    require_fit(100_000_000, board, 200.0)
    with pytest.raises(PlanInfeasible, match="300 MB, and --max-memory-mb allows 200 MB"):
        require_fit(300_000_000, board, 200.0)
    with pytest.raises(PlanInfeasible, match="Raspberry Pi Zero 2 W"):
        require_fit(900_000_000, board, 2000.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"device": "x", "format": "onnx", "precision": "fp32", "passes": [{}]}',
            "needs its name in the field 'pass'",
        ),
        ('{"device": "x", "format": "onnx", "precision": "fp32", "passes": [{"pass": "flaot16"}]}', "'float16'"),
        ('{"device": "x", "format": "onnx", "precision": "fp33", "passes": []}', "precision"),
        ("[]", "PlanRecord"),
        ("\x00", "not valid JSON"),
    ],
)
def test_a_bad_plan_file_is_refused_with_its_fault(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Plan.from_json(text)


class Ending(nn.Module):
    """A convolution net that returns probabilities: its softmax is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.conv(x).mean((2, 3)), -1)


def test_a_classifier_that_ends_in_a_softmax_is_no_transformer() -> None:
    program = capture(load(Ending().eval(), torch.rand(1, 3, 8, 8)))
    assert attention_ops(program) == 0
    assert plan(program, find_device("raspberrypi5"), calibrated=True).precision == "int8"


def test_attention_is_a_softmax_that_a_product_reads(attention: ExportedProgram) -> None:
    assert attention_ops(attention) >= 1


def test_options_of_another_format_are_refused(conv: ExportedProgram) -> None:
    board = find_device("raspberrypi5")
    assert plan(conv, board, format="onnx", precision="fp32", options=["onnx.opset=18"]).options == {"opset": "18"}
    with pytest.raises(InvalidInput, match=r"'tflite.layout=NHWC' is an option of tflite, and this export is to onnx"):
        plan(conv, board, format="onnx", precision="fp32", options=["tflite.layout=NHWC"])
    with pytest.raises(InvalidInput, match="is no option: write NAME=VALUE"):
        plan(conv, board, format="onnx", precision="fp32", options=["opset"])
