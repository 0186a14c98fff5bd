"""Every runtime, by existing, goes through these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit import registry
from edgekit.bundle import Bundle, record_file
from edgekit.drafting import ExportOptions
from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.inference import RUNTIMES, open_session, time_ops
from edgekit.pipeline import export
from edgekit.processing import Arrays

MODELS = Path(__file__).parents[1] / "models.py"


@pytest.fixture(scope="module", params=registry.names(RUNTIMES))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    format = registry.load(RUNTIMES, request.param).FORMAT
    given = ExportOptions(format=format, precision="fp32", measure=False)
    return export(f"{MODELS}:two_inputs", "raspberrypi5", tmp_path_factory.mktemp("bundle") / "out", given)


@pytest.fixture
def feeds() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, 50, (1, 6)).astype(np.int64),
        "offset": rng.standard_normal((1, 8)).astype(np.float32),
    }


def test_a_session_returns_named_arrays_and_counts_its_calls(bundle: Bundle, feeds: Arrays) -> None:
    with open_session(bundle) as session:
        first, second = session.run(feeds), session.run(feeds)
        stats = session.stats()
    assert list(first) == ["mean", "mixed"]
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert stats.calls == 2
    assert stats.p50_s is not None
    assert 0 < stats.p50_s <= stats.total_s


def test_its_backend_loads_and_says_its_version(bundle: Bundle) -> None:
    assert registry.load(RUNTIMES, bundle.artifact.runtime).load_backend()[0].isdigit()


def test_outputs_are_the_callers_to_keep(bundle: Bundle, feeds: Arrays) -> None:
    with open_session(bundle) as session:
        first = session.run(feeds)
        kept = {name: array.copy() for name, array in first.items()}
        session.run({**feeds, "offset": feeds["offset"] + 1})
    assert all(np.array_equal(kept[name], first[name]) for name in kept)


def test_inputs_are_never_written_to(bundle: Bundle, feeds: Arrays) -> None:
    for array in feeds.values():
        array.setflags(write=False)
    with open_session(bundle) as session:
        session.run(feeds)


def test_arrays_that_are_not_contiguous_are_fine(bundle: Bundle, feeds: Arrays) -> None:
    wide = np.repeat(feeds["offset"], 2, axis=1)[:, ::2]
    with open_session(bundle) as session:
        assert np.array_equal(session.run({**feeds, "offset": wide})["mean"], session.run(feeds)["mean"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": np.zeros((1, 8))}, "must be float32, not float64.*astype"),
        ({"offset": np.zeros((1, 9), np.float32)}, r"shape \[1, 8\], not \[1, 9\]"),
        ({"offset": [0.0] * 8}, "must be a numpy array, not list"),
        ({"other": np.zeros(1)}, "inputs must be tokens.*offset"),
    ],
)
def test_inputs_that_do_not_fit_are_named(bundle: Bundle, feeds: Arrays, change: Arrays, message: str) -> None:
    with open_session(bundle) as session, pytest.raises(InvalidInput, match=message):
        session.run({**feeds, **change})


def test_a_closed_session_says_so_and_closes_twice(bundle: Bundle, feeds: Arrays) -> None:
    session = open_session(bundle)
    session.close()
    session.close()
    with pytest.raises(InvalidInput, match="closed"):
        session.run(feeds)


def test_a_file_that_is_no_model_is_named(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / bundle.artifact.path).write_bytes(b"not a model at all")
    artifact = msgspec.structs.replace(bundle.artifact, **record_file(tmp_path, bundle.artifact.path))
    broken = replace(bundle, path=tmp_path, manifest=msgspec.structs.replace(bundle.manifest, artifacts=(artifact,)))
    with pytest.raises(BundleCorrupt, match=f"cannot load .*{bundle.artifact.path}.*{bundle.artifact.runtime}"):
        open_session(broken)


def test_threads_below_one_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InvalidInput, match="threads must be 1 or more"):
        open_session(bundle, threads=0)


def test_delegation_counts_every_op_on_some_unit(bundle: Bundle, feeds: Arrays) -> None:
    found = registry.load(RUNTIMES, bundle.artifact.runtime).delegation(bundle, feeds)
    assert found.units
    assert all(count > 0 for ops in found.units.values() for count in ops.values())


def test_each_op_has_a_time_and_they_are_no_more_than_the_call(bundle: Bundle, feeds: Arrays) -> None:
    found = time_ops(bundle, feeds)
    if bundle.artifact.runtime == "litert":  # its clock counts microseconds, and these ops are shorter
        assert found.reason in {None, "each op took less time than its clock tells apart"}
        return
    assert found.reason is None, found.reason
    assert found.plain_s is not None
    assert found.watched_s is not None
    assert found.inferences >= 5
    assert {op.unit for op in found.ops} <= {"cpu", "xnnpack", "portable"}
    assert all(op.seconds >= 0 and op.calls >= 1 for op in found.ops)
    assert sum(op.share for op in found.ops) == pytest.approx(1)
    assert found.ops_s < 20 * found.watched_s  # of the right unit; medians of a busy machine may add up to more
    [lookup] = [op for op in found.ops if op.op in {"Gather", "aten.embedding"}]
    assert lookup.module == "table"
