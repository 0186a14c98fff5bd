"""What the ExecuTorch exporter writes, read back from the file, and what it says of what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("executorch", reason="the ExecuTorch exporter is not installed: pip install 'edgekit[executorch]'")

from edgekit.bundle import Artifact, Bundle, Manifest, PlanRecord, record_file
from edgekit.compression import Quantization, silent
from edgekit.errors import UnsupportedModel
from edgekit.exporters import executorch as exporter
from edgekit.exporters._executorch_lowering import lower
from edgekit.exporting import Exported, ExportJob
from edgekit.parity import sqnr_db
from edgekit.processing import Arrays
from edgekit.runtimes import executorch as runtime
from edgekit.runtimes._executorch_file import first_method, read_file
from edgekit.types import DynamicDim, ModelSource, Precision, TensorSpec

STATIC = Quantization(scheme="static", weight_dtype="int8", activation_dtype="uint8")
DYNAMIC = Quantization(scheme="dynamic", weight_dtype="int8", activation_dtype="uint8")
INT4 = Quantization(scheme="dynamic", weight_dtype="int4", activation_dtype="int8", group_size=32)


class Net(nn.Module):
    """An odd pad, a fused clamp in a module of its own, a residual, a mean that drops its axes, a linear answer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU6()
        self.inner, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.act(self.stem(nn.functional.pad(pixels, (0, 1, 0, 1))))
        return self.head((self.inner(x) + x).clamp(0, 2).mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.down = nn.Embedding(50, 64), nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.table(ids)
        y = x + self.down(nn.functional.gelu(self.up(x)))
        return {"hidden": y, "sum": y.cumsum(1)}


def job_of(
    module: nn.Module,
    feeds: dict[str, Tensor],
    precision: Precision = "fp32",
    quantization: Quantization | None = None,
    calibration: tuple[Arrays, ...] = (),
    dynamic_shapes: dict[str, dict[int, torch.export.Dim]] | None = None,
    keep_intermediates: bool = False,
) -> ExportJob:
    module.eval().requires_grad_(False)
    program = torch.export.export(module, (), feeds, dynamic_shapes=dynamic_shapes, strict=False)
    answers = module(**feeds)
    named = answers if isinstance(answers, dict) else {"output": answers}
    return ExportJob(
        name="net",
        program=program,
        inputs=tuple(spec(name, tensor) for name, tensor in feeds.items()),
        outputs=tuple(spec(name, tensor) for name, tensor in named.items()),
        precision=precision,
        quantization=quantization,
        calibration=calibration,
        keep_intermediates=keep_intermediates,
    )


def spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))  # type: ignore[arg-type]


def bundle_of(
    job: ExportJob, exported: Exported, folder: Path, inputs: tuple[TensorSpec, ...] = (), dynamic: str = ""
) -> Bundle:
    record = record_file(folder, exported.path)
    manifest = Manifest(
        schema_version=1,
        name=job.name,
        source=ModelSource(kind="python", ref="net"),
        device="x",
        plan=PlanRecord(device="x", format="executorch", precision=job.precision, passes=()),
        precision=exported.precision,
        inputs=inputs or job.inputs,
        outputs=job.outputs,
        dynamic=(DynamicDim(name=dynamic, minimum=2, maximum=16),) if dynamic else (),
        artifacts=(Artifact(format="executorch", runtime="executorch", runtime_version_range=">=1.5", **record),),
        created_utc="",
    )
    return Bundle(folder, manifest)


def exported(job: ExportJob, folder: Path) -> Exported:
    return exporter.export(job, folder, exporter.Options(), silent)


def pixels(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(count)]


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportJob, Exported, Path]:
    folder = tmp_path_factory.mktemp("int8")
    samples = tuple({"pixels": x.numpy()} for x in pixels(16))
    job = job_of(Net(), {"pixels": pixels(1)[0]}, "int8", STATIC, samples)
    return job, exported(job, folder), folder


def test_int8_is_integer_from_end_to_end_and_close(int8: tuple[ExportJob, Exported, Path]) -> None:
    job, found, folder = int8
    assert found.delegation is not None
    assert found.delegation.delegated_share == 1
    assert found.delegation.partitions == 1
    assert found.delegation.float_islands == ()
    assert (found.precision.quantized_ops, found.precision.float_ops) == (3, 0)
    weights = sum(p.numel() for n, p in Net().named_parameters() if n.endswith("weight"))
    assert found.precision.weight_bytes["int8"] == weights
    module = Net().eval()
    with runtime.open_session(bundle_of(job, found, folder)) as session, torch.no_grad():
        pairs = [(module(x).numpy(), session.run({"pixels": x.numpy()})["output"]) for x in pixels(24)[16:]]
    expected, actual = (np.stack(side) for side in zip(*pairs, strict=True))
    assert sqnr_db(expected, actual) > 30


def test_exposed_modules_of_an_int8_model_keep_their_fusion(
    int8: tuple[ExportJob, Exported, Path], tmp_path: Path
) -> None:
    job, found, folder = int8
    exposed = exporter.expose(job, folder / found.path, tmp_path / "model.pte", exporter.Options())
    assert list(exposed) == ["act", "inner"]  # `stem` is one kernel with `act`, `head` is the answer
    seen: dict[str, Tensor] = {}
    module = Net().eval()
    for path in exposed:
        module.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: seen.update({path: o}))
    x = pixels(1)[0]
    with torch.no_grad():
        module(x)
    manifest = bundle_of(job, found, tmp_path).manifest
    manifest = msgspec.structs.replace(manifest, outputs=(*manifest.outputs, *exposed.values()))
    wider, narrow = Bundle(tmp_path, manifest), bundle_of(job, found, folder)
    with runtime.open_session(wider) as session, runtime.open_session(narrow) as plain:
        answers = session.run({"pixels": x.numpy()})
        assert np.array_equal(answers["output"], plain.run({"pixels": x.numpy()})["output"])
    assert all(sqnr_db(seen[path].numpy(), answers[spec.name]) > 25 for path, spec in exposed.items())


@pytest.mark.parametrize(
    ("precision", "scheme", "dtype", "least_db"), [("int8-dynamic", DYNAMIC, "int8", 30), ("w4a8", INT4, "int4", 18)]
)
def test_dynamic_schemes_quantise_linear_layers_and_name_what_stays_behind(
    precision: Precision, scheme: Quantization, dtype: str, least_db: float, tmp_path: Path
) -> None:
    module = Tokens()
    ids = torch.randint(0, 50, (1, 8), generator=torch.Generator().manual_seed(0))
    job = job_of(module, {"ids": ids}, precision, scheme)
    found = exported(job, tmp_path)
    assert (found.precision.quantized_ops, found.precision.float_ops) == (2, 1)  # the table stays float
    assert found.precision.weight_bytes[dtype] == 2 * 64 * 96 // (2 if dtype == "int4" else 1)
    assert found.delegation is not None
    assert found.delegation.float_islands == ()
    by_op = {fallback.op: fallback for fallback in found.delegation.fallbacks}
    assert by_op["aten.embedding"].where == "table"
    assert by_op["aten.embedding"].reason == "XNNPACK has no kernel for aten.embedding"
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "x = self.table" in text)
    assert by_op["aten.embedding"].source == f"test_executorch_exporter.py:{line}"
    with runtime.open_session(bundle_of(job, found, tmp_path)) as session, torch.no_grad():
        answers, expected = session.run({"ids": ids.numpy()}), module(ids)
    assert list(answers) == ["hidden", "sum"]
    assert sqnr_db(expected["hidden"].numpy(), answers["hidden"]) > least_db


def test_the_partitioners_own_reason_is_given(tmp_path: Path) -> None:
    class Sliced(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x[:, ::2]).softmax(1)

    found = exported(job_of(Sliced(), {"x": torch.rand(1, 8, 4)}), tmp_path)
    assert found.delegation is not None
    reasons = {fallback.op: fallback.reason for fallback in found.delegation.fallbacks}
    assert reasons["aten._softmax"] == "dim must be the last dim, got dim = 1 for tensor of rank 3"
    assert "aten.slice_copy" in reasons


def test_dynamic_axes_go_through(tmp_path: Path) -> None:
    module = Tokens()
    ids = torch.randint(0, 50, (1, 8), generator=torch.Generator().manual_seed(0))
    job = job_of(module, {"ids": ids}, dynamic_shapes={"ids": {1: torch.export.Dim("length", min=2, max=16)}})
    found = exported(job, tmp_path)
    inputs = (TensorSpec(name="ids", dtype="int64", shape=(1, "length")),)
    outputs = tuple(msgspec.structs.replace(spec, shape=(1, "length", 64)) for spec in job.outputs)
    named = replace(job, outputs=outputs)
    with runtime.open_session(bundle_of(named, found, tmp_path, inputs, "length")) as session, torch.no_grad():
        for length in (2, 16, 5):
            answer = session.run({"ids": ids[:, :1].repeat(1, length).numpy()})["sum"]
            assert sqnr_db(module(ids[:, :1].repeat(1, length))["sum"].numpy(), answer) > 100


def test_a_record_for_debugging_is_written_when_asked_for(tmp_path: Path) -> None:
    job = job_of(nn.Linear(4, 4), {"input": torch.rand(1, 4)}, keep_intermediates=True)
    found = exported(job, tmp_path)
    assert found.intermediates == ("model.etrecord",)
    from executorch.devtools.etrecord import parse_etrecord

    assert parse_etrecord(str(tmp_path / "model.etrecord")).edge_dialect_program is not None


def test_int8_that_quantised_nothing_is_an_error(tmp_path: Path) -> None:
    job = job_of(
        nn.Softmax(-1), {"input": torch.rand(1, 4)}, "int8", STATIC, ({"input": np.zeros((1, 4), np.float32)},)
    )
    with pytest.raises(UnsupportedModel, match=r"int8 was asked for, and not one op.*take --precision fp32"):
        exported(job, tmp_path)


def test_a_group_that_xnnpack_has_not_is_refused(tmp_path: Path) -> None:
    odd = Quantization(scheme="dynamic", weight_dtype="int4", activation_dtype="int8", group_size=24)
    with pytest.raises(UnsupportedModel, match="group_size 24 was asked for, and XNNPACK takes multiples of 32"):
        exported(job_of(nn.Linear(96, 4), {"input": torch.rand(1, 96)}, "w4a8", odd), tmp_path)


def test_a_layer_with_a_computed_bias_stays_float_beside_one_in_int4(tmp_path: Path) -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return nn.functional.linear(y, self.second.weight, self.second.bias * x.mean())

    found = exported(job_of(Computed(), {"x": torch.rand(1, 32)}, "w4a8", INT4), tmp_path)
    assert (found.precision.quantized_ops, found.precision.weight_bytes["int4"]) == (1, 32 * 32 // 2)


def test_the_method_that_is_read_is_the_one_asked_for_and_not_the_first_by_name(tmp_path: Path) -> None:
    x = (torch.rand(1, 4),)
    linear, wave = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Softmax(0))
    programs = {name: torch.export.export(m.eval(), x) for name, m in (("x_4", wave), ("x_16", linear))}
    with (tmp_path / "model.pte").open("wb") as stream:
        lower(programs, "net", etrecord=False).executorch.write_to_file(stream)
    sizes = (DynamicDim(name="x", minimum=4, maximum=16, sizes=(4, 16)),)
    portable = [read_file(tmp_path / "model.pte", method).delegation().units.get("portable") for method in programs]
    assert portable == [{"aten._softmax": 1}, None]
    assert first_method(sizes) == "x_4"
    assert first_method(()) == "forward"


def test_static_int8_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="without calibration samples"):
        exported(job_of(nn.Linear(4, 4), {"input": torch.rand(1, 4)}, "int8", STATIC), tmp_path)


def test_dtypes_that_cannot_cross_the_border_are_refused_before_any_work() -> None:
    job = job_of(nn.Identity(), {"input": torch.zeros(1, 4, dtype=torch.bfloat16)})
    assert [refusal.where for refusal in exporter.reject(job, exporter.Options())] == ["input", "output"]
    assert exporter.reject(job_of(nn.Identity(), {"input": torch.zeros(1, 4)}), exporter.Options()) == []


@pytest.mark.parametrize("clamp", [torch.relu, lambda x: x.clamp(0, 6), lambda x: x.clamp(min=0)])
def test_a_float_clamp_is_part_of_its_convolution(clamp: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return clamp(self.conv(x))

    found = exported(job_of(Clamped(), {"x": pixels(1)[0]}), tmp_path)
    assert found.delegation is not None
    assert found.delegation.units == {"xnnpack": {"StaticTranspose": 2, "Conv2d": 1}}
    assert found.delegation.layout_copies == 2


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_each_gelu_is_the_one_asked_for_and_stays_in_the_delegate(approximate: str, tmp_path: Path) -> None:
    module, x = nn.GELU(approximate=approximate), torch.linspace(-6, 6, 1201)[None]
    job = job_of(module, {"input": x})
    found = exported(job, tmp_path)
    with runtime.open_session(bundle_of(job, found, tmp_path)) as session:
        answer = session.run({"input": x.numpy()})["output"]
    assert sqnr_db(module(x.double()).numpy(), answer) > 135  # the other GELU is 82 dB away
    assert found.delegation is not None
    assert set(found.delegation.units) == {"xnnpack"}
