"""What single passes compute, against references in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgekit.compression import CompressedModel, Pass, PassContext, Quantization
from edgekit.dataset import Dataset, load_dataset
from edgekit.drafting import ExportOptions
from edgekit.errors import InvalidInput, UnknownName
from edgekit.model import Model
from edgekit.passes.correct_bias import CorrectBias
from edgekit.passes.float16 import Float16
from edgekit.passes.fold_batch_norm import FoldBatchNorm
from edgekit.passes.int4_group import Int4Group
from edgekit.passes.int8_dynamic import Int8Dynamic
from edgekit.passes.int8_static import Int8Static, round_weight
from edgekit.passes.int8_weight_only import Int8WeightOnly
from edgekit.pipeline import export
from edgekit.profile import find_device
from edgekit.source import load

MODELS = Path(__file__).parent / "models.py"


def context(model: Model, data: Dataset | None = None) -> PassContext:
    return PassContext(device=find_device("raspberrypi5"), calibration=data)


def samples(model: Model, path: Path) -> Dataset:
    return load_dataset(str(path), model.inputs, None, {})


def test_folding_changes_no_answer_beyond_rounding() -> None:
    model = load(f"{MODELS}:small_conv")
    folded = FoldBatchNorm().apply(CompressedModel(model=model), context(model))
    assert isinstance(folded.model.module.norm, nn.Identity)
    x = torch.rand(4, 3, 32, 32)
    reference = model.module.double()(x.double())
    assert float((folded.model.module(x) - reference).abs().max()) < 1e-6 * float(reference.abs().max()) + 1e-6
    assert folded.output_of == {"stem": "norm"}


def test_a_batch_norm_whose_convolution_has_another_reader_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = load(Shared().eval(), torch.rand(1, 3, 8, 8))
    assert FoldBatchNorm().apply(CompressedModel(model=model), context(model)).changes == ()


@given(rows=st.integers(1, 5), columns=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-6, 1e6))
def test_rounded_weights_are_on_the_grid_and_nearest(rows: int, columns: int, seed: int, scale: float) -> None:
    layer = nn.Linear(columns, rows)
    weight = np.random.default_rng(seed).standard_normal((rows, columns)) * scale
    layer.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32), requires_grad=False)
    exact = layer.weight.numpy().astype(np.float64)
    step = np.abs(exact).max(axis=1, keepdims=True) / 127
    error = np.abs(round_weight(layer, per_channel=True).numpy() - exact)
    assert (error <= step / 2 * (1 + 1e-4)).all()
    largest = np.abs(exact).argmax(axis=1)
    assert (error[np.arange(rows), largest] <= step[:, 0] * 1e-4).all()


def test_a_channel_of_zeros_stays_zeros() -> None:
    layer = nn.Linear(4, 2)
    layer.weight = nn.Parameter(torch.tensor([[0.0] * 4, [1.0, 2.0, 3.0, 4.0]]), requires_grad=False)
    assert round_weight(layer, per_channel=True)[0].tolist() == [0.0] * 4


def test_corrected_biases_restore_every_mean_output(pixels_npz: Path) -> None:
    """Weights rounded to a coarse grid by hand, as the exporter will, on the very samples of the correction."""
    model = load(f"{MODELS}:small_conv")
    data = samples(model, pixels_npz)
    around = context(model, data)
    decided = Int8Static().apply(CompressedModel(model=model, calibration=data), around)
    corrected = CorrectBias(samples=64).apply(decided, around).model.module
    batch = torch.cat([torch.from_numpy(s["pixels"]) for s in data.samples])
    for path in ("stem", "depthwise", "head"):
        layer = corrected.get_submodule(path)
        layer.weight.data = round_weight(layer, per_channel=True)
    means: dict[str, list[torch.Tensor]] = {}
    for module in (model.module, corrected):
        for path in ("stem", "depthwise", "head"):
            module.get_submodule(path).register_forward_hook(
                lambda m, i, o, p=path: means.setdefault(p, []).append(_channel_mean(o))
            )
        module(batch)
    for path, (expected, got) in means.items():
        assert float((expected - got).abs().max()) < 1e-5, path


def _channel_mean(output: torch.Tensor) -> torch.Tensor:
    return output.double().mean(dim=(0, 2, 3) if output.dim() == 4 else 0)


class Attention(nn.Module):
    """A layer whose largest weight is no Linear's."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0])
        return answer


@pytest.mark.parametrize("step", [Int8Static(), Int8Dynamic(), Int8WeightOnly(), Int4Group()])
def test_the_projections_of_attention_are_changed_too(step: Pass) -> None:
    model = load(Attention().eval(), torch.rand(1, 5, 64))
    data = Dataset("here", ({"x": np.ones((1, 5, 64), np.float32)},))
    changes = step.apply(CompressedModel(model=model, calibration=data), context(model, data)).changes
    assert {change.tensor: change.reason is None for change in changes} == {
        f"{layer}{kind}": kind == "weight"
        for layer in ("attention.in_proj_", "attention.out_proj.", "head.")
        for kind in ("weight", "bias")
    }


@pytest.mark.toolchain
def test_as_many_bytes_are_changed_as_the_file_holds_in_int8(tmp_path: Path) -> None:
    model = load(Attention().eval(), torch.rand(1, 5, 64))
    options = ExportOptions(format="onnx", precision="int8-dynamic", sqnr_db_min=5.0, measure=False)
    made = export(model, "raspberrypi5", tmp_path / "out", options).manifest
    changed = sum(change.bytes_after for change in made.changes if change.after == "int8")
    assert changed == 64 * (3 * 64 + 64 + 10)
    assert 0 <= made.precision.weight_bytes["int8"] - changed < 0.05 * changed  # zero points


def test_a_model_without_a_batch_axis_keeps_its_biases_with_the_reason(pixels_npz: Path) -> None:
    class OneRow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.conv(pixels).reshape(1, 4 * 32 * 32)

    model = load(OneRow().eval(), torch.rand(1, 3, 32, 32))
    data = samples(model, pixels_npz)
    decided = Int8Static().apply(CompressedModel(model=model, calibration=data), context(model, data))
    change = CorrectBias().apply(decided, context(model, data)).changes[-1]
    assert change.tensor == "conv.bias"
    assert change.after == change.before
    assert "takes no batch" in (change.reason or "")


def test_bias_correction_without_an_int8_scheme_is_refused(pixels_npz: Path) -> None:
    model = load(f"{MODELS}:small_conv")
    with pytest.raises(InvalidInput, match="must come after"):
        CorrectBias().apply(CompressedModel(model=model), context(model, samples(model, pixels_npz)))


def test_float16_says_which_weights_do_not_fit() -> None:
    model = load(f"{MODELS}:overflowing")
    changes = {c.tensor: c for c in Float16().apply(CompressedModel(model=model), context(model)).changes}
    assert "clamped" in changes["first.weight"].after
    assert changes["second.weight"].after == "float16"
    assert changes["second.weight"].bytes_after * 2 == changes["second.weight"].bytes_before


def test_dynamic_int8_keeps_convolutions_and_takes_matrices_and_tables() -> None:
    conv, tables = load(f"{MODELS}:small_conv"), load(f"{MODELS}:two_inputs")
    kept = {c.tensor: c.reason for c in Int8Dynamic().apply(CompressedModel(model=conv), context(conv)).changes}
    assert "no dynamic int8 kernel" in (kept["stem.weight"] or "")
    assert kept["head.weight"] is None
    taken = {c.tensor: c.after for c in Int8Dynamic().apply(CompressedModel(model=tables), context(tables)).changes}
    assert taken["table.weight"] == taken["mix.weight"] == "int8"


class _Norm(nn.BatchNorm2d):
    """A norm that does more than normalise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x))


class _Twice(nn.Module):
    """One convolution and norm, called twice; or one convolution with two norms."""

    def __init__(self, norms: int, kind: type[nn.BatchNorm2d]) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 3, 1), nn.ModuleList(kind(3) for _ in range(norms))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norms[-1](self.conv(self.norms[0](self.conv(x))))


@pytest.mark.parametrize(("norms", "kind"), [(1, nn.BatchNorm2d), (2, nn.BatchNorm2d), (1, _Norm), (2, _Norm)])
def test_layers_that_are_shared_or_do_more_are_never_folded(norms: int, kind: type[nn.BatchNorm2d]) -> None:
    model = load(_Twice(norms, kind).eval(), torch.rand(1, 3, 8, 8))
    assert FoldBatchNorm().apply(CompressedModel(model=model), context(model)).changes == ()


class Positions(nn.Module):
    """A linear layer, and coordinates that go through a fixed matrix into a sine, as SAM encodes points."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)
        self.encode = Fourier()

    def forward(self, x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return self.mix(x) + self.encode(points)


class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 16) * 10)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return torch.sin(points @ self.frequencies)


def test_matrices_that_are_no_layers_weight_stay_float_in_dynamic_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load(Positions().eval(), (torch.randn(4, 16), torch.rand(4, 2)))
    decided = Int8Dynamic().apply(CompressedModel(model=model), context(model)).quantization
    assert decided is not None
    assert decided.float_products == ("encode",)
    options = ExportOptions(format="onnx", precision="int8-dynamic", measure=False)
    bundle = export(model, "raspberrypi5", tmp_path / "out", options)
    assert bundle.manifest.precision.quantized_ops == 1
    assert bundle.manifest.precision.float_ops == 1
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.sqnr_db is not None
    assert bundle.manifest.parity.sqnr_db > 35  # 8 bits in the sine's argument leave about 15


@pytest.mark.parametrize("step", [Int4Group, Int8Static, Int8Dynamic, Int8WeightOnly])
def test_a_module_to_keep_that_is_not_there_is_refused_with_the_nearest(step: Any, pixels_npz: Path) -> None:
    model = load(f"{MODELS}:small_conv")
    data = samples(model, pixels_npz)
    with pytest.raises(UnknownName, match=r"no module of this model is called 'steam'\. Did you mean 'stem'"):
        step(keep_float=("steam",)).apply(CompressedModel(model=model, calibration=data), context(model, data))


@pytest.mark.parametrize("step", [Int4Group, Int8Static, Int8Dynamic, Int8WeightOnly])
def test_a_module_kept_in_float_keeps_everything_below_it(step: Any, pixels_npz: Path) -> None:
    stack = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(3072, 32)), nn.Linear(32, 4))
    model = load(stack.eval(), {"input": torch.zeros(1, 3, 32, 32)})
    data = Dataset(origin="pixels", samples=({"input": np.load(pixels_npz)["pixels"][:1]},))
    found = step(keep_float=("0",)).apply(CompressedModel(model=model, calibration=data), context(model, data))
    assert {change.tensor for change in found.changes if change.reason is None} == {"1.weight"}
    assert [found.quantization.stays_float(path) for path in ("0", "0.1", "1", "01")] == [True, True, False, False]


def test_a_module_whose_own_products_stay_float_has_quantised_modules_below() -> None:
    scheme = Quantization(scheme="dynamic", weight_dtype="int8", activation_dtype="uint8", float_products=("encode",))
    assert [scheme.stays_float(path) for path in ("encode", "encode.mix")] == [True, False]
