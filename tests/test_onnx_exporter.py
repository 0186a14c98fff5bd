"""What is particular to ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit.compression import CompressedModel, Quantization
from edgekit.drafting import ExportOptions
from edgekit.errors import UnsupportedModel
from edgekit.exporters import onnx as exporter
from edgekit.exporters._onnx_quantization import input_ranges, split_gemm
from edgekit.exporting import ExportJob
from edgekit.graph import capture
from edgekit.inference import open_session
from edgekit.pipeline import export
from edgekit.source import load
from edgekit.verification import verify

MODELS = Path(__file__).parent / "models.py"


def exported(model: nn.Module, example: torch.Tensor, out: Path, **options: object) -> onnx.ModelProto:
    loaded = load(model, example)
    given = exporter.Options(**options)  # type: ignore[arg-type]
    job = ExportJob.of(CompressedModel(model=loaded), capture(loaded), "fp32")
    exporter.export(job, out, given, lambda step: None)
    return onnx.load(out / "model.onnx")


class Renamed(nn.Module):
    """Outputs whose names are also names inside the graph, an input returned as it is, one value returned twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x)
        z = torch.relu(y)
        return {"relu": y, "linear": z, "again": z, "same": x}


def test_outputs_get_the_models_names_whatever_the_graph_calls_its_values(tmp_path: Path) -> None:
    bundle = export(load(Renamed().eval(), torch.randn(1, 4)), "raspberrypi5", tmp_path / "out",
                    ExportOptions(precision="fp32", measure=False))  # fmt: skip
    x = np.array([[1.0, -2.0, 3.0, -4.0]], np.float32)
    with open_session(bundle) as session:
        outputs = session.run({"x": x})
    assert list(outputs) == ["relu", "linear", "again", "same"]
    np.testing.assert_array_equal(outputs["same"], x)
    np.testing.assert_array_equal(outputs["linear"], np.maximum(outputs["relu"], 0))


def test_nodes_keep_their_module_and_nothing_else_of_the_trace(tmp_path: Path) -> None:
    model, example = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(1, 4)
    proto = exported(model, example, tmp_path)
    assert {p.value for n in proto.graph.node for p in n.metadata_props} == {"0", "1"}
    assert {p.key for n in proto.graph.node for p in n.metadata_props} == {"edgekit.module"}


def test_large_weights_go_beside_the_graph_and_the_bundle_carries_both(tmp_path: Path) -> None:
    model = nn.Linear(64, 64).eval()
    exported(model, torch.randn(1, 64), tmp_path, external_data_bytes=1000)
    assert (tmp_path / "model.onnx.data").stat().st_size >= 64 * 64 * 4
    assert (tmp_path / "model.onnx").stat().st_size < 10_000


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-dynamic"])
def test_external_data_works_at_every_precision(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SmallFiles(exporter.Options, frozen=True, kw_only=True):
        external_data_bytes: int = 1000

    monkeypatch.setattr(exporter, "Options", SmallFiles)
    layers = nn.Sequential(nn.Embedding(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 8))
    model = load(layers.eval(), torch.arange(12)[None])
    samples = tmp_path / "samples.npz"
    np.savez(samples, **{name: np.repeat(ids, 20, axis=0) for name, ids in model.example_arrays.items()})
    given = ExportOptions(precision=precision, calibration=str(samples), measure=False)
    bundle = export(model, "raspberrypi5", tmp_path / "out", given)
    assert [a.path for a in bundle.manifest.assets if a.role == "external_data"] == ["model.onnx.data"]
    weights = sum(bundle.manifest.precision.weight_bytes.values())
    assert bundle.artifact.bytes < bundle.model_bytes <= bundle.artifact.bytes + weights  # nothing is kept twice
    assert verify(bundle).ok


def test_a_model_that_cannot_be_quantised_is_no_int8_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"not one op of this model could be quantised.*fp32"):
        export(load(nn.Softmax(-1).eval(), torch.randn(1, 4)), "raspberrypi5", tmp_path / "out",
               ExportOptions(precision="int8-dynamic", measure=False))  # fmt: skip


class Shared(nn.Module):
    """One matrix read by two linear layers and, if `tied`, by an embedding too."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.first.weight = self.second.weight = self.table.weight if tied else self.first.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(self.table(ids))))


@pytest.mark.parametrize("tied", [False, True])
def test_gemm_is_split_exactly_and_a_shared_matrix_is_turned_once(tied: bool, tmp_path: Path) -> None:
    proto = exported(Shared(tied).eval(), torch.tensor([3]), tmp_path)
    before = onnx.reference.ReferenceEvaluator(proto)
    split_gemm(proto)
    onnx.checker.check_model(proto)
    assert [n.op_type for n in proto.graph.node] == ["Gather", "MatMul", "Add", "Relu", "MatMul"]
    assert len([t for t in proto.graph.initializer if list(t.dims) == [6, 6]]) == 2
    after = onnx.reference.ReferenceEvaluator(proto)
    for token in range(6):
        feeds = {proto.graph.input[0].name: np.array([token])}
        np.testing.assert_allclose(after.run(None, feeds)[0], before.run(None, feeds)[0], rtol=1e-5, atol=1e-7)


def test_a_module_kept_float_keeps_everything_below_it(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 16))
    loaded = load(module.eval(), torch.randn(1, 16))
    scheme = Quantization(scheme="dynamic", weight_dtype="int8", activation_dtype="uint8", keep_float=("0",))
    job = ExportJob.of(CompressedModel(model=loaded, quantization=scheme), capture(loaded), "int8-dynamic")
    found = exporter.export(job, tmp_path, exporter.Options(), lambda step: None)
    assert (found.precision.quantized_ops, found.precision.float_ops) == (1, 1)


def test_the_input_range_puts_zero_on_a_step() -> None:
    pixels = {"x": np.array([[-1.0, 1.0]], np.float32)}
    ranges = input_ranges((pixels,), "uint8")["x"][0]
    step = (float(ranges["rmax"]) - float(ranges["rmin"])) / 255
    assert float(ranges["rmin"]) == -1.0
    assert float(ranges["rmax"]) >= 1.0
    assert abs(1.0 / step - round(1.0 / step)) < 1e-4
    (small,) = input_ranges(({"x": np.array([-0.006, 1.0], np.float32)},), "uint8")["x"]
    assert float(small["rmax"] - small["rmin"]) < 1.01
    assert input_ranges(({"x": np.array([0.0, 1.0], np.float32)},), "uint8") == {}
    assert input_ranges(({"x": np.array([-3, 3])},), "uint8") == {}


def test_a_missing_toolchain_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from edgekit.errors import ToolchainMissing

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ToolchainMissing, match=r"pip install 'edgekit\[onnx\]'"):
        exported(nn.Linear(2, 2).eval(), torch.randn(1, 2), tmp_path)
