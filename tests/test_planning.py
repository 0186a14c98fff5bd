"""Which passes, format and precision are chosen, and why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from edgekit.errors import InvalidInput, PlanInfeasible, UnknownName
from edgekit.graph import attention_ops, capture
from edgekit.passes.float16 import Float16
from edgekit.passes.int8_static import Int8Static
from edgekit.planning import RECIPES, Plan, check_plan, plan, require_fit
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


@pytest.mark.parametrize("device", device_ids())
def test_every_device_gets_a_plan_with_a_reason_for_each_choice(device: str, conv: ExportedProgram) -> None:
    made = plan(conv, find_device(device), calibrated=True)
    assert made.format == find_device(device).runtime[0].format  # the first that is listed
    assert made.precision != "lossless"  # what is stored smaller must be decoded: only who asks for it gets it
    assert made.passes == RECIPES[made.precision]
    assert [reason.split()[0] for reason in made.reasons] == ["format", "precision"]
    check_plan(made)


def test_a_convolution_net_is_int8_on_a_board_when_there_are_samples(conv: ExportedProgram) -> None:
    board = find_device("raspberrypi5")
    assert plan(conv, board, calibrated=True).precision == "int8"
    without = plan(conv, board, calibrated=False)
    assert without.precision == "fp32"
    assert "--calibration" in without.reasons[1]


def test_attention_is_dynamic_on_a_board_and_half_on_a_gpu(attention: ExportedProgram) -> None:
    assert plan(attention, find_device("raspberrypi4")).precision == "int8-dynamic"
    assert plan(attention, find_device("h200")).precision == "fp16"


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
