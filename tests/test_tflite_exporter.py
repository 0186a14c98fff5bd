"""What is particular to TFLite files."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.bundle import Bundle, record_file
from edgekit.compression import Quantization
from edgekit.drafting import ExportOptions
from edgekit.errors import ToolchainMissing, UnsupportedModel
from edgekit.exporters import tflite
from edgekit.exporters._tflite_quantization import widen
from edgekit.parity import sqnr_db
from edgekit.pipeline import export
from edgekit.processing import Arrays
from edgekit.runtimes.litert import open_interpreter, open_session
from edgekit.source import load
from tests.tflite_jobs import DYNAMIC, STATIC, WEIGHT_ONLY, bundle_of, job_of

MODELS = Path(__file__).parent / "models.py"
STEPS = lambda step: None  # noqa: E731  progress that nobody watches


@pytest.fixture(scope="module")
def pixels(pixels_npz: Path) -> tuple[Arrays, ...]:
    return tuple({"pixels": image[None]} for image in np.load(pixels_npz)["pixels"])


@pytest.fixture(scope="module")
def int8(pixels: tuple[Arrays, ...], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = load(f"{MODELS}:small_conv")
    return bundle_of(model, job_of(model, STATIC, pixels[:32]), tmp_path_factory.mktemp("int8"))


def run(bundle: Bundle, feeds: Arrays) -> Arrays:
    with open_session(bundle) as session:
        return session.run(feeds)


class Odd(nn.Module):
    """Names no graph likes, an input returned as it is, one value twice, integers and booleans, an unused input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(4, 4), nn.Embedding(9, 4)

    def forward(self, x: Tensor, ids: Tensor, unused: Tensor) -> dict[str, Tensor]:
        y = self.linear(x) + self.table(ids)
        z = torch.relu(y)
        return {
            "relu.1": y,
            "linear/ü :;": z,
            "again": z,
            "same": x,
            "best": y.argmax(-1),
            "more": y > 0,
            "ids": ids + 1,
        }


def test_names_dtypes_and_order_of_the_model_survive(tmp_path: Path) -> None:
    example = {"ids": torch.tensor([[3]]), "unused": torch.rand(2), "x": torch.randn(1, 1, 4)}
    model = load(Odd().eval(), example)
    outputs = run(bundle_of(model, job_of(model), tmp_path), model.example_arrays)
    expected = model(model.example_arrays)
    assert list(outputs) == list(expected)
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_allclose(outputs[name], array, atol=1e-6)


def test_images_may_come_with_their_channels_last(tmp_path: Path) -> None:
    model = load(f"{MODELS}:small_conv")
    bundle = bundle_of(model, job_of(model), tmp_path, tflite.Options(layout="NHWC"))
    (spec,) = bundle.manifest.inputs
    assert (spec.shape, spec.layout) == ((1, 32, 32, 3), "NHWC")
    pixels = model.example_arrays["pixels"]
    outputs = run(bundle, {"pixels": np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))})
    assert sqnr_db(model({"pixels": pixels})["output"], outputs["output"]) > 100


def test_an_export_leaves_the_program_as_it_was_and_opens_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the toolchain opened a connection")

    model = load(f"{MODELS}:small_conv")
    job = job_of(model)
    before = str(job.program)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    tflite.export(job, tmp_path, tflite.Options(), STEPS)
    assert str(job.program) == before


def test_static_int8_is_close_and_its_answer_is_not_rounded(int8: Bundle, pixels: tuple[Arrays, ...]) -> None:
    model = load(f"{MODELS}:small_conv")
    held_out = pixels[32:]
    expected = np.concatenate([model(sample)["output"] for sample in held_out])
    actual = np.concatenate([run(int8, sample)["output"] for sample in held_out])
    assert sqnr_db(expected, actual) > 30
    assert len(np.unique(actual)) == actual.size
    assert int8.manifest.precision.quantized_ops == 3
    assert int8.manifest.precision.float_ops == 0
    assert int8.manifest.precision.weight_bytes["int8"] == 16 * 27 + 16 * 9 + 160


def test_weights_have_a_scale_per_channel_and_activations_a_zero_point(int8: Bundle) -> None:
    tensors = open_interpreter(int8, 1).get_tensor_details()
    scales = {t["shape"].tolist()[0]: len(t["quantization_parameters"]["scales"]) for t in tensors
              if t["dtype"] is np.int8 and t["shape"].tolist() == [16, 3, 3, 3]}  # fmt: skip
    assert scales == {16: 16}
    clamped = [t["quantization"] for t in tensors if t["dtype"] is np.int8 and t["shape"].tolist() == [1, 16, 16, 16]]
    assert -128 in [zero_point for _, zero_point in clamped]


def test_integer_inputs_and_outputs_are_for_hardware_and_unseen_by_users(
    int8: Bundle, pixels: tuple[Arrays, ...], tmp_path: Path
) -> None:
    model = load(f"{MODELS}:small_conv")
    options = tflite.Options(integer_io=True)
    bundle = bundle_of(model, job_of(model, STATIC, pixels[:32]), tmp_path, options)
    interpreter = open_interpreter(bundle, 1)
    ends = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    assert {end["dtype"] for end in ends} == {np.int8}
    assert {dtype for o in interpreter._get_ops_details() for dtype in o["result_types"]} <= {np.int8, np.int32}
    floats, integers = run(int8, pixels[40]), run(bundle, pixels[40])
    assert integers["output"].dtype == np.float32
    step = ends[1]["quantization"][0]
    np.testing.assert_allclose(integers["output"], floats["output"], atol=3 * step)


class Bordered(nn.Module):
    """A maximum over a border of -inf, and a stored row that is joined with rows of the same scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.row = nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, 1), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, pixels: Tensor) -> Tensor:
        rows = self.pool(self.stem(pixels)).flatten(2).transpose(1, 2)
        return torch.cat([self.row, rows], 1)


def test_borders_of_infinity_and_stored_rows_have_a_scale(pixels: tuple[Arrays, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load(Bordered().eval(), torch.from_numpy(pixels[0]["pixels"]))
    bundle = bundle_of(model, job_of(model, STATIC, pixels[:32]), tmp_path)
    expected = model.module(torch.from_numpy(pixels[0]["pixels"])).detach().numpy()
    (answer,) = run(bundle, pixels[0]).values()
    assert sqnr_db(expected, answer) > 30


def test_modules_kept_float_stay_float(pixels: tuple[Arrays, ...], tmp_path: Path) -> None:
    model = load(f"{MODELS}:small_conv")
    scheme = msgspec.structs.replace(STATIC, keep_float=("depthwise",))
    precision = bundle_of(model, job_of(model, scheme, pixels[:8]), tmp_path).manifest.precision
    assert (precision.quantized_ops, precision.float_ops) == (2, 1)
    assert precision.weight_bytes["float32"] >= 16 * 9 * 4


def test_a_module_kept_float_keeps_everything_below_it(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 16))
    model = load(module.eval(), torch.randn(1, 16))
    scheme = msgspec.structs.replace(DYNAMIC, keep_float=("0",))
    precision = bundle_of(model, job_of(model, scheme), tmp_path).manifest.precision
    assert (precision.quantized_ops, precision.float_ops) == (1, 1)


def test_dynamic_int8_leaves_convolutions_alone(tmp_path: Path) -> None:
    model = load(f"{MODELS}:small_conv")
    precision = bundle_of(model, job_of(model, DYNAMIC), tmp_path).manifest.precision
    assert (precision.name, precision.quantized_ops, precision.float_ops) == ("int8-dynamic", 1, 2)


def test_dynamic_int8_rounds_a_matrix_without_the_factors_of_the_norm_before_it(tmp_path: Path) -> None:
    norm, linear = nn.LayerNorm(16), nn.Linear(16, 8)
    with torch.no_grad():
        norm.weight[3] = 100.0
    model = load(nn.Sequential(norm, linear).eval(), torch.randn(1, 16))
    tensors = open_interpreter(bundle_of(model, job_of(model, DYNAMIC), tmp_path), 1).get_tensor_details()
    (scales,) = [t["quantization_parameters"]["scales"] for t in tensors if t["shape"].tolist() == [8, 16]]
    np.testing.assert_allclose(scales, linear.weight.detach().abs().amax(1).numpy() / 127, rtol=1e-5)


def test_weight_only_int8_rounds_weights_and_nothing_else(tmp_path: Path) -> None:
    model = load(f"{MODELS}:mlp")
    bundle = bundle_of(model, job_of(model, WEIGHT_ONLY), tmp_path)
    assert bundle.manifest.precision.weight_bytes["int8"] == 16 * 32 + 32 * 4
    x = model.example["x"].double()
    for layer in (model.module.first, model.module.second):  # type: ignore[union-attr]
        scale = layer.weight.double().abs().amax(1, keepdim=True) / 127  # type: ignore[union-attr,operator]
        x = nn.functional.linear(x, (layer.weight.double() / scale).round() * scale, layer.bias.double())  # type: ignore[union-attr,operator]
        x = torch.relu(x) if layer is model.module.first else x
    np.testing.assert_allclose(run(bundle, model.example_arrays)["output"], x.numpy(), atol=1e-5)


def test_a_model_that_cannot_be_quantised_is_no_int8_model(tmp_path: Path) -> None:
    model = load(nn.Softmax(-1).eval(), torch.randn(1, 4))
    with pytest.raises(UnsupportedModel, match=r"not one op of this model could be quantised.*fp32"):
        tflite.export(job_of(model, DYNAMIC), tmp_path, tflite.Options(), STEPS)


class Masked(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        rows = pixels.flatten(2)
        mask = torch.where(rows[:, :1] < 0.5, torch.finfo(torch.float32).min, 0.0)
        return (rows + mask).softmax(-1)


def test_numbers_that_no_step_reaches_are_refused_with_the_op_that_brings_them(
    pixels: tuple[Arrays, ...], tmp_path: Path
) -> None:
    """LiteRT would end the process at the first softmax."""
    model = load(Masked().eval(), {"pixels": torch.from_numpy(pixels[0]["pixels"])})
    words = r"'where' at the model itself \(test_tflite_exporter\.py:\d+\) gives numbers from -3\.4e\+38 to 0, "
    with pytest.raises(UnsupportedModel, match=words):
        tflite.export(job_of(model, STATIC, pixels), tmp_path, tflite.Options(), lambda step: None)


def test_an_op_that_litert_cannot_run_is_refused_with_its_module(tmp_path: Path) -> None:
    class Sorting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(-1)[0]

    model = load(nn.Sequential(nn.Linear(4, 4), Sorting(), nn.ReLU()).eval(), torch.randn(1, 4))
    with pytest.raises(UnsupportedModel, match=r"STABLEHLO_SORT \(in module '1'\).*no kernel"):
        tflite.export(job_of(model), tmp_path, tflite.Options(), STEPS)


def test_analysis_tells_what_falls_back_and_what_needs_a_rewrite() -> None:
    class Ranking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(-1).sort(-1)[0] + torch.linalg.det(x @ x.mT)

    job = job_of(load(nn.Sequential(nn.Linear(4, 4), Ranking()).eval(), torch.randn(4, 4)))
    found = {(entry.op, entry.module): entry.verdict for entry in tflite.support(job)}
    assert found["aten.cumsum.default", "1"] == "falls back"
    assert found["aten.sort.default", "1"] == "needs a rewrite"
    assert [op for (op, _), verdict in found.items() if "det" in op and verdict == "needs a rewrite"]
    assert ("aten.linear.default", "0") in found


def test_a_batch_may_vary(tmp_path: Path) -> None:
    model = load(f"{MODELS}:small_conv", dynamic=["batch=1:8"])
    bundle = bundle_of(model, job_of(model), tmp_path)
    with open_session(bundle) as session:
        for count in (1, 5, 8, 2):
            feeds = {"pixels": np.random.default_rng(count).uniform(0, 1, (count, 3, 32, 32)).astype(np.float32)}
            assert sqnr_db(model(feeds)["output"], session.run(feeds)["output"]) > 100


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_exposed_modules_answer_like_pytorchs_also_before_a_fused_clamp(layout: str, tmp_path: Path) -> None:
    model = load(f"{MODELS}:small_conv")  # its inner tensors are [1, 16, 16, 16]: no shape tells their layout
    job, options = job_of(model), tflite.Options(layout=layout)  # type: ignore[arg-type]
    bundle = bundle_of(model, job, tmp_path, options)
    exposed = tflite.expose(job, bundle.artifact_path, tmp_path / "exposed.tflite", options)
    assert list(exposed) == ["norm", "depthwise"]
    artifact = msgspec.structs.replace(bundle.artifact, **record_file(tmp_path, "exposed.tflite"))
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=(artifact,), outputs=tuple(exposed.values()))
    pixels = model.example_arrays["pixels"]
    given = pixels if layout == "NCHW" else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    actual = run(Bundle(tmp_path, manifest), {"pixels": given})
    with torch.no_grad():
        normed = model.module.norm(model.module.stem(model.example["pixels"]))  # type: ignore[operator,union-attr]
        wide = model.module.depthwise(normed.clamp(0, 6))  # type: ignore[operator,union-attr]
    assert sqnr_db(normed.numpy(), actual[exposed["norm"].name]) > 100
    assert sqnr_db(wide.numpy(), actual[exposed["depthwise"].name]) > 100


def test_the_input_range_puts_zero_on_a_step() -> None:
    found = widen({"min": np.array([-1.0], np.float32), "max": np.array([1.0], np.float32)})
    step = float(found["max"][0] - found["min"][0]) / 255
    assert float(found["max"][0]) >= 1.0
    assert abs(1.0 / step - round(1.0 / step)) < 1e-4
    positive = {"min": np.array([0.0]), "max": np.array([1.0])}
    assert widen(positive) == positive
    found = widen({"min": np.array([-0.006], np.float32), "max": np.array([1.0], np.float32)})
    assert float(found["max"][0] - found["min"][0]) < 1.01


def test_a_missing_toolchain_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(ToolchainMissing, match=r"pip install 'edgekit\[tflite\]'"):
        tflite.export(job_of(load(f"{MODELS}:mlp")), tmp_path, tflite.Options(), STEPS)


@pytest.mark.parametrize("scheme", [None, DYNAMIC, WEIGHT_ONLY])
def test_integer_inputs_are_refused_where_nothing_would_make_them(scheme: Quantization | None) -> None:
    job = job_of(load(f"{MODELS}:mlp"), scheme)
    [refused] = tflite.reject(job, tflite.Options(integer_io=True))
    assert refused.reason == f"only static int8 has integers for inputs and outputs, and this is {job.precision}"
    assert tflite.reject(job, tflite.Options()) == []


def test_an_export_with_integer_inputs_is_still_timed_against_float_and_refused_in_float(
    pixels_npz: Path, tmp_path: Path
) -> None:
    model = load(f"{MODELS}:small_conv")
    given = ExportOptions(format="tflite", precision="int8", calibration=str(pixels_npz), options=("integer_io=true",))
    made = export(model, "raspberrypi5", tmp_path / "out", given)
    assert made.manifest.against_float is not None
    with pytest.raises(UnsupportedModel, match=r"integer_io: only static int8 has integers .* this is fp32: take"):
        export(model, "raspberrypi5", tmp_path / "fp32", replace(given, precision="fp32"))


def test_the_cache_of_a_language_model_is_no_image() -> None:
    class Step(nn.Module):
        def forward(self, tokens: Tensor, position: Tensor, key_0: Tensor, value_0: Tensor) -> Tensor:
            return tokens + position + key_0.sum() + value_0.sum()

    cache = torch.zeros(1, 2, 4, 4)
    example = {"tokens": torch.ones(1, 2), "position": torch.ones(1), "key_0": cache, "value_0": cache}
    job = job_of(load(Step().eval(), example))
    [refused] = tflite.reject(job, tflite.Options(layout="NHWC"))
    assert (refused.where, refused.fix) == ("layout=NHWC", "leave the option out")
    assert "cache" in refused.reason
