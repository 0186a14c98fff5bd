"""The ops of int8 TFLite files in integers, against LiteRT's reference kernels and against exact arithmetic."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgekit.bundle import Asset, Bundle, record_file, write_golden
from edgekit.cli.app import run
from edgekit.compression import Quantization
from edgekit.errors import EdgekitError, InvalidInput
from edgekit.exporters import tflite
from edgekit.npu.integer.check import integer_check
from edgekit.npu.integer.execution import kernels, refusal, run_op
from edgekit.npu.integer.fixed_point import Factor, factor, high_product, number, rescaled, rescaled_once, shifted_right
from edgekit.npu.integer.graph import read_graph
from edgekit.npu.integer.ops import convolution, roots, softmax
from edgekit.processing import Array, Arrays
from edgekit.runtimes._litert_steps import reference_kernels
from edgekit.source import load
from tests.tflite_jobs import STATIC, bundle_of, job_of

BY_TENSOR = msgspec.structs.replace(STATIC, per_channel=False)
INT32 = st.integers(-(2**31) + 1, 2**31 - 1)
INTEGER_IO = tflite.Options(integer_io=True)


@given(st.floats(1e-8, 1e6))
def test_a_factor_is_a_real_number_to_31_bits(real: float) -> None:
    found = factor(real)
    assert 2**30 <= found.mantissa < 2**31
    assert float(found.mantissa) * 2.0 ** (int(found.shift) - 31) == pytest.approx(real, rel=2**-31)


def test_factors_at_the_ends() -> None:
    assert factor(0.0) == factor(2.0**-40) == (0, 0)
    assert factor(1 - 2.0**-40) == factor(1.0) == (2**30, 1)


@given(INT32, INT32)
def test_the_high_product_is_rounded_to_nearest_halves_up(a: int, b: int) -> None:
    assert int(high_product(number(a), number(b))) == math.floor(Fraction(2 * a * b, 2**32) + Fraction(1, 2))


def test_the_one_high_product_beyond_int32_saturates() -> None:
    assert int(high_product(number(-(2**31)), number(-(2**31)))) == 2**31 - 1


@given(INT32, st.integers(0, 31))
def test_a_right_shift_is_rounded_to_nearest_halves_away_from_zero(value: int, by: int) -> None:
    assert int(shifted_right(number(value), number(by))) == away(Fraction(value, 2**by))


@given(st.integers(-(2**24), 2**24), st.integers(2**30, 2**31 - 1), st.integers(-20, 6))
def test_both_roundings_are_within_a_step_of_the_product(value: int, mantissa: int, shift: int) -> None:
    by = Factor(number(mantissa), number(shift))
    exact = Fraction(value * mantissa) * Fraction(2) ** (shift - 31)
    assert int(rescaled_once(number(value), by)) == math.floor(exact + Fraction(1, 2))
    assert abs(int(rescaled(number(value), by)) - exact) <= Fraction(1, 2) + Fraction(2) ** min(shift - 1, -1)


def test_the_two_roundings_differ_where_the_first_makes_a_half() -> None:
    by = factor(0.00195)
    assert pytest.approx(0.4992) == 256 * 0.00195  # in units of 2^-8 that is 127.8, which the first rounds to a half
    assert (int(rescaled(number(256), by)), int(rescaled_once(number(256), by))) == (1, 0)


def away(exact: Fraction) -> int:
    """Rounded to nearest, halves away from zero."""
    whole = math.floor(abs(exact) + Fraction(1, 2))
    return whole if exact >= 0 else -whole


def test_exponentials_in_fixed_point() -> None:
    x = np.unique(np.concatenate([np.linspace(-(2**31) + 1, 0, 40_001), -(2.0 ** np.arange(0, 31))])).astype(np.int64)
    found = softmax.exponential(x) / 2**31
    assert np.abs(found - np.exp(x / 2**26)).max() < 1e-6


def test_reciprocals_in_fixed_point() -> None:
    total = np.arange(2**19, 2**29, 999_983)
    share, bits = softmax.reciprocal(total)
    np.testing.assert_allclose(share / 2.0**31 / 2.0**bits, 2.0**19 / total, rtol=1e-7)


@given(st.integers(2, 2**31 - 1))
def test_inverse_roots_in_fixed_point(value: int) -> None:
    found = roots.inverse_root(value)
    assert float(found.mantissa) * 2.0 ** (int(found.shift) - 31) == pytest.approx(value**-0.5, rel=1e-5)


class Image(nn.Module):
    """Convolutions of every kind, pools, elementwise ops and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 32, (1, 3), dilation=(1, 2), groups=4)
        self.twice = nn.Conv2d(32, 64, 3, groups=32)
        self.last, self.fc = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = functional.relu6(self.first(pixels))
        y = functional.relu(self.deep(x))
        z = y + self.last(y)
        z = z * torch.sigmoid(self.last(z)) - y
        pooled = functional.avg_pool2d(functional.max_pool2d(z, 2), 2)
        sampled = z[:, :, ::2]
        return {"classes": self.fc(pooled.mean((2, 3))), "map": self.twice(self.wide(z)), "sampled": sampled}


class Tokens(nn.Module):
    """Attention, a layer norm taken apart, GELU in both forms, and ops that move."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.qkv(self.norm(x)).reshape(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(1, -1, 16))
        x = x + self.down(functional.gelu(self.up(x)))
        x = x + self.down(functional.gelu(self.up(x), approximate="tanh"))
        one, other = x.chunk(2, -1)
        joined = torch.cat([torch.tanh(one), other[:, ::2].repeat(1, 2, 1)], -1)
        bounds = torch.maximum(one, other), functional.relu(x)
        return joined, functional.pad(one, (1, 2)), *bounds


EXAMPLES: dict[str, tuple[type[nn.Module], Tensor]] = {
    "image": (Image, torch.zeros(1, 3, 16, 16)),
    "tokens": (Tokens, torch.zeros(1, 12, 16)),
}


def made(name: str, scheme: Quantization, out: Path, options: tflite.Options = INTEGER_IO) -> Bundle:
    """A bundle with golden samples around a small model in int8."""
    module, like = EXAMPLES[name]
    model = load(module(), {"pixels" if name == "image" else "x": like})
    rng = np.random.default_rng(0)
    samples: tuple[Arrays, ...] = tuple(
        {key: rng.normal(size=like.shape).astype(np.float32) for key in model.example} for _ in range(4)
    )
    out.mkdir(parents=True)
    bundle = bundle_of(model, job_of(model, scheme, samples), out, options)
    write_golden(out / "golden.npz", [(sample, model(sample)) for sample in samples])
    golden = Asset(role="golden", **record_file(out, "golden.npz"))
    manifest = msgspec.structs.replace(bundle.manifest, assets=(golden,))
    (out / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(out)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("integers")
    wanted = {"image-channel": STATIC, "tokens-channel": STATIC, "tokens-tensor": BY_TENSOR}
    return {name: made(name.partition("-")[0], scheme, folder / name) for name, scheme in wanted.items()}


@pytest.mark.parametrize("name", ["image-channel", "tokens-channel", "tokens-tensor"])
def test_every_op_writes_what_litert_writes_on_any_input(name: str, bundles: dict[str, Bundle]) -> None:
    graph = read_graph(bundles[name].artifact_path.read_bytes())
    litert, known, rng = reference_kernels(bundles[name]), kernels(), np.random.default_rng(1)
    constants = {each.index: each.constant for each in graph.tensors if each.constant is not None}
    for _ in range(10):
        feeds = {each.index: rng.integers(-128, 128, each.shape).astype(np.int8) for each in graph.inputs}
        steps = litert(feeds)
        for op in graph.ops:
            for tensor, value in zip(op.outputs, run_op(op, constants | feeds | steps, known), strict=True):
                np.testing.assert_array_equal(value, steps[tensor.index], err_msg=op.where)


def test_the_models_here_hold_the_ops_that_are_computed(bundles: dict[str, Bundle]) -> None:
    found = {op.kind for each in bundles.values() for op in read_graph(each.artifact_path.read_bytes()).ops}
    assert found == kernels().keys()


def test_a_file_of_integers_is_said_to_be_one(bundles: dict[str, Bundle]) -> None:
    found = integer_check(bundles["image-channel"])
    assert found.ok
    assert not found.differences
    assert found.samples == 4
    assert found.values > 10_000
    by_name = {each.name: each for each in found.outputs}
    assert all(each.sqnr_db > 20 for each in by_name.values())
    assert all(each.xnnpack_steps <= 3 for each in by_name.values())
    assert sum(found.ops.values()) == len(read_graph(bundles["image-channel"].artifact_path.read_bytes()).ops)


def test_the_first_op_that_differs_is_named(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_two(op: object, values: list[Array]) -> tuple[Array, ...]:
        (exact,) = convolution.depthwise(op, values)  # type: ignore[arg-type]
        return (np.where(exact > 0, exact - 2, exact).astype(np.int8),)

    monkeypatch.setitem(convolution.OPS, "DEPTHWISE_CONV_2D", off_by_two)  # type: ignore[arg-type]
    found = integer_check(bundles["image-channel"])
    assert not found.ok
    first = found.differences[0]
    assert (first.op, first.module, first.steps) == ("DEPTHWISE_CONV_2D", "deep", 2)
    assert "DEPTHWISE_CONV_2D in module 'deep', differs from LiteRT by up to 2 steps" in found.misses[0]
    assert integer_check(bundles["image-channel"], max_steps=2).ok


def test_float_islands_are_refused_by_op_and_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = msgspec.structs.replace(STATIC, keep_float=("last",))
    bundle = made("image", kept, tmp_path / "out", tflite.Options())
    found = integer_check(bundle)
    assert (found.ok, found.samples, found.outputs) == (False, 0, ())
    assert any(each.startswith("CONV_2D in module 'last' computes on float32") for each in found.islands)
    assert any(each.startswith("QUANTIZE") for each in found.islands)
    assert run(["verify", str(bundle.path), "--integer-only", "--json", "--quiet"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["islands"] == list(found.islands)
    assert shown["ok"] is False


def test_the_command_shows_ops_values_and_outputs(
    bundles: dict[str, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(bundles["tokens-channel"].path), "--integer-only"]) == 0
    shown = capsys.readouterr().out
    assert "BATCH_MATMUL" in shown
    assert "equal in all" in shown
    assert run(["verify", str(bundles["tokens-channel"].path), "--integer-only", "--min-cosine", "0.9"]) == 2
    assert run(["verify", str(bundles["tokens-channel"].path), "--integer-only", "--max-steps", "-1"]) == 2
    assert "from 0 on" in capsys.readouterr().err
    assert run(["verify", str(bundles["tokens-channel"].path), "--max-steps", "1"]) == 2
    assert "with --integer-only" in capsys.readouterr().err


def test_other_formats_are_refused(small_conv_bundle: Bundle) -> None:
    with pytest.raises(InvalidInput, match="integers are checked in TFLite files: export with --format tflite"):
        integer_check(small_conv_bundle)


def test_it_needs_no_torch(bundles: dict[str, Bundle]) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgekit.bundle import Bundle; from edgekit.npu.integer.check import integer_check\n"
        f"print(integer_check(Bundle.open({str(bundles['image-channel'].path)!r}), samples=1).ok)"
    )
    found = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "True", found.stderr


def test_damaged_files_are_refused_in_words(bundles: dict[str, Bundle]) -> None:
    content = bundles["image-channel"].artifact_path.read_bytes()
    rng, known = np.random.default_rng(0), kernels()
    for _ in range(150):
        damaged = bytearray(content[: rng.integers(1, len(content))] if rng.random() < 0.3 else content)
        for at in rng.integers(0, len(damaged), rng.integers(1, 9)):
            damaged[at] = rng.integers(0, 256)
        with contextlib.suppress(EdgekitError):  # anything else fails the test
            for op in read_graph(bytes(damaged)).ops:
                tensors = [each for each in (*op.inputs, *op.outputs) if each]
                if refusal(op, known) is None and max(math.prod(each.shape) for each in tensors) < 1e6:
                    blank = {each.index: np.zeros(each.shape, each.dtype) for each in tensors}
                    run_op(op, blank | {t.index: t.constant for t in tensors if t.constant is not None}, known)


def test_an_op_without_what_it_needs_is_refused(bundles: dict[str, Bundle]) -> None:
    op = next(op for op in read_graph(bundles["image-channel"].artifact_path.read_bytes()).ops if op.kind == "CONV_2D")
    values = {each.index: np.zeros(each.shape, each.dtype) for each in op.inputs if each}
    with pytest.raises(InvalidInput, match="CONV_2D in module 'first' has no input 0"):
        run_op(replace(op, inputs=(None, *op.inputs[1:])), values, kernels())
    with pytest.raises(
        InvalidInput, match="CONV_2D in module 'first' cannot be computed from what the file says of it"
    ):
        run_op(replace(op, options=None), values, kernels())
