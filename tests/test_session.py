"""What a session counts is what happened, and an open model refuses what does not fit it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import Artifact, Bundle, Manifest, PlanRecord, WeightPrecision, record_file
from edgekit.errors import BundleCorrupt, InvalidInput, UnknownName
from edgekit.inference import open_session
from edgekit.session import KEPT_CALLS, CallLog, SessionStats, by_size
from edgekit.types import DynamicDim, ModelSource, TensorSpec

X = np.array([[1, -2, 3, 4]], np.float32)


def logged(times_ns: list[int]) -> SessionStats:
    log = CallLog()
    for elapsed in times_ns:
        log.add(elapsed)
    return log.stats()


def test_a_session_without_calls_has_no_times() -> None:
    assert CallLog().stats() == SessionStats(calls=0, total_s=0.0, p50_s=None, p90_s=None, max_s=None)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60))
def test_statistics_agree_with_exact_sums_and_quantiles(times_ns: list[int]) -> None:
    stats, seconds = logged(times_ns), np.array(times_ns, np.longdouble) / 10**9
    assert stats.calls == len(times_ns)
    assert stats.total_s == pytest.approx(sum(times_ns) / 10**9, rel=1e-12)
    for got, q in ((stats.p50_s, 0.5), (stats.p90_s, 0.9), (stats.max_s, 1)):
        assert got == pytest.approx(float(np.quantile(seconds, q)), rel=1e-9, abs=1e-15)


def test_times_are_of_the_newest_calls_and_the_total_of_all() -> None:
    stats = logged([10**9] * 10 + [1000] * KEPT_CALLS)
    assert stats.calls == KEPT_CALLS + 10
    assert stats.total_s == pytest.approx(10 + KEPT_CALLS * 1e-6, rel=1e-12)
    assert stats.max_s == pytest.approx(1e-6)


def test_a_log_keeps_no_more_than_it_says() -> None:
    log = CallLog()
    for elapsed in range(3 * KEPT_CALLS):
        log.add(elapsed)
    assert len(log._recent) == KEPT_CALLS


def test_a_snapshot_does_not_change_afterwards() -> None:
    log = CallLog()
    log.add(5)
    before = log.stats()
    log.add(7)
    assert (before.calls, log.stats().calls) == (1, 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle that squares four numbers of any batch, and a function to write it again with other content."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "x"], ["y"])], "square", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return write(tmp_path, model.SerializeToString())


def write(root: Path, model: bytes, runtime: str = "onnxruntime", outputs: str = "y") -> Path:
    (root / "model.onnx").write_bytes(model)
    (root / "manifest.json").write_text(
        Manifest(
            schema_version=1,
            name="square",
            source=ModelSource(kind="python", ref="a.py:square"),
            device="generic-x86",
            plan=PlanRecord(device="generic-x86", format="onnx", precision="fp32", passes=()),
            precision=WeightPrecision(name="fp32", weight_bytes={}, quantized_ops=0, float_ops=0),
            inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
            outputs=tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 4)) for name in outputs),
            artifacts=(
                Artifact(
                    **record_file(root, "model.onnx"),
                    format="onnx",
                    runtime=runtime,
                    runtime_version_range="onnxruntime>=1.20",
                ),
            ),
            created_utc="2025-01-01T00:00:00Z",
        ).to_json()
    )
    return root


@pytest.mark.parametrize("opened", [str, Path, Bundle.open], ids=["str", "Path", "Bundle"])
def test_a_session_runs_the_model_and_counts(root: Path, opened: Callable[[Path], Any]) -> None:
    with open_session(opened(root)) as session:
        assert [str(spec) for spec in session.inputs] == ["x: float32[batch, 4]"]
        assert [spec.name for spec in session.outputs] == ["y"]
        for batch in (1, 3):
            np.testing.assert_array_equal(session.run({"x": X.repeat(batch, 0)})["y"], (X * X).repeat(batch, 0))
        stats = session.stats()
    assert stats.calls == 2
    assert stats.max_s is not None
    assert 0 < stats.max_s <= stats.total_s < 60


def test_memory_that_is_not_contiguous_is_read_right(root: Path) -> None:
    wide = np.arange(32, dtype=np.float32).reshape(4, 8)
    with open_session(root) as session:
        for view in (wide[:, ::2], wide[::-1, 4:], wide[:, :4].T):
            np.testing.assert_array_equal(session.run({"x": view})["y"], view**2)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "inputs must be x"),
        ({"x": X, "z": X}, "got x, z"),
        ({"x": X.astype(np.float64)}, r"not float64: use \.astype"),
        ({"x": X.astype(">f4")}, r"float32, not .*: use \.astype"),
        ({"x": X[:, :3]}, r"not \[1, 3\]"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused_and_not_counted(root: Path, feeds: Any, message: str) -> None:
    with open_session(root) as session:
        with pytest.raises(InvalidInput, match=message):
            session.run(feeds)
        assert session.stats().calls == 0


def test_a_closed_session_says_so(root: Path) -> None:
    session = open_session(root)
    session.close()
    session.close()
    with pytest.raises(InvalidInput, match="closed: open another"):
        session.run({"x": X})
    assert session.stats().calls == 0


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_below_one_is_refused(root: Path, threads: int) -> None:
    with pytest.raises(InvalidInput, match=f"threads must be 1 or more, not {threads}"):
        open_session(root, threads=threads)


@pytest.mark.parametrize("model", [b"", b"not a model", b"\x08\x09" * 20])
def test_a_model_the_runtime_cannot_load_is_named_with_the_version_it_asks_for(root: Path, model: bytes) -> None:
    with pytest.raises(BundleCorrupt, match=r"onnxruntime .* cannot load .*model\.onnx.* asks for onnxruntime>=1\.20"):
        open_session(write(root, model))


def test_an_unknown_runtime_offers_the_nearest(root: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'onnxruntime'"):
        open_session(write(root, b"model", runtime="onnxruntimes"))


def test_outputs_the_model_does_not_have_are_refused(root: Path) -> None:
    model = (root / "model.onnx").read_bytes()
    with pytest.raises(BundleCorrupt, match="z"), open_session(write(root, model, outputs="yz")) as session:
        session.run({"x": X})


def test_sizes_that_no_input_has_are_a_damaged_manifest() -> None:
    dynamic = (DynamicDim(name="tokens.1", minimum=1, maximum=8, sizes=(1, 8)),)
    with pytest.raises(BundleCorrupt, match="lists sizes of tokens_1, which no input has"):
        by_size(lambda name: lambda feeds: (), "main", (), dynamic)
