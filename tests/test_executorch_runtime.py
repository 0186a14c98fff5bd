"""The ExecuTorch runtime beyond what every runtime's contract asks."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("executorch", reason="the ExecuTorch runtime is not installed: pip install 'edgekit[executorch]'")

from edgekit.bundle import Bundle, record_file
from edgekit.drafting import ExportOptions
from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.pipeline import export
from edgekit.quiet import quiet_native
from edgekit.runtimes import executorch

MODELS = Path(__file__).parent / "models.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    given = ExportOptions(format="executorch", precision="fp32", measure=False)
    return export(f"{MODELS}:two_inputs", "raspberrypi5", tmp_path_factory.mktemp("two_inputs") / "out", given)


def with_content(bundle: Bundle, folder: Path, content: bytes) -> Bundle:
    (folder / bundle.artifact.path).write_bytes(content)
    artifact = msgspec.structs.replace(bundle.artifact, **record_file(folder, bundle.artifact.path))
    return replace(bundle, path=folder, manifest=msgspec.structs.replace(bundle.manifest, artifacts=(artifact,)))


def feeds(largest: int = 49) -> dict[str, np.ndarray]:
    return {"tokens": np.full((1, 6), largest, np.int64), "offset": np.ones((1, 8), np.float32)}


def test_the_file_is_mapped_and_not_read(bundle: Bundle) -> None:
    with executorch.open_session(bundle):
        assert str(bundle.artifact_path) in Path("/proc/self/maps").read_text()


def test_threads_of_the_process_are_those_asked_for_last(bundle: Bundle) -> None:
    from executorch.extension.pybindings import portable_lib

    for threads in (2, 1):
        with executorch.open_session(bundle, threads=threads) as session:
            session.run(feeds())
            assert portable_lib._threadpool_get_thread_count() == threads


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named_and_the_process_lives(bundle: Bundle, tmp_path: Path, share: float) -> None:
    whole = bundle.artifact_path.read_bytes()
    broken = with_content(bundle, tmp_path, whole[: int(len(whole) * share)])
    with pytest.raises(BundleCorrupt, match=r"cannot load .*model\.pte.*asks for executorch>="):
        executorch.open_session(broken)


def test_a_manifest_that_names_other_outputs_than_the_file_has_is_refused(bundle: Bundle) -> None:
    fewer = msgspec.structs.replace(bundle.manifest, outputs=bundle.manifest.outputs[:1])
    with pytest.raises(BundleCorrupt, match="takes 2 inputs and gives 2 outputs, its manifest names 2 and 1"):
        executorch.open_session(replace(bundle, manifest=fewer))


@pytest.mark.parametrize(
    ("side", "change", "found"),
    [
        ("inputs", {"shape": (1, 7)}, r"'tokens' of forward is int64 \(1, 6\), and the manifest says int64 \(1, 7\)"),
        ("inputs", {"dtype": "int32"}, r"'tokens' of forward is int64 \(1, 6\), and the manifest says int32"),
        ("outputs", {"shape": (8,)}, r"'mean' of forward is float32 \(1, 8\), and the manifest says float32 \(8,\)"),
        ("outputs", {"dtype": "float64"}, r"'mean' of forward is float32 \(1, 8\), and the manifest says float64"),
    ],
)
def test_a_manifest_with_other_shapes_or_dtypes_than_the_file_is_refused(
    bundle: Bundle, side: str, change: dict[str, object], found: str
) -> None:
    first, *others = getattr(bundle.manifest, side)
    changed = msgspec.structs.replace(bundle.manifest, **{side: (msgspec.structs.replace(first, **change), *others)})
    with pytest.raises(BundleCorrupt, match=found):
        executorch.open_session(replace(bundle, manifest=changed))


def test_what_native_code_writes_is_held_back_and_can_be_read(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_native() as log:
        os.write(2, b"Missing operator: [0] x\n")
        assert log() == "Missing operator: [0] x\n"
    assert capfd.readouterr().err == ""


def test_an_id_beyond_its_table_is_a_sentence_and_the_session_goes_on(bundle: Bundle) -> None:
    with executorch.open_session(bundle) as session:
        expected = session.run(feeds())
        with pytest.raises(InvalidInput, match="values out of range"):
            session.run(feeds(largest=50))
        again = session.run(feeds())
    assert all(np.array_equal(expected[name], again[name]) for name in expected)


def test_delegation_without_the_manifests_is_counted_from_the_file(bundle: Bundle) -> None:
    known = bundle.manifest.delegation
    assert known is not None
    bare = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, delegation=None))
    counted = executorch.delegation(bare, feeds())
    assert counted.units == known.units
    assert counted.units["portable"] == {"aten.embedding": 1, "aten.mean": 1}
    assert (counted.partitions, counted.layout_copies) == (known.partitions, known.layout_copies)


def test_nothing_is_printed_by_native_code(bundle: Bundle) -> None:
    code = f"""
from edgekit.bundle import Bundle
from edgekit.runtimes import executorch
with executorch.open_session(Bundle.open({str(bundle.path)!r})): pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "cpuinfo" not in done.stderr
    assert "threadpool" not in done.stderr


def test_importing_the_runtime_imports_no_torch() -> None:
    code = "import sys, edgekit.runtimes.executorch; sys.exit('torch' in sys.modules or 'executorch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_runtime_without_traces_gives_a_reason_and_no_times(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from executorch.extension.pybindings import portable_lib

    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("built without event tracer")

    monkeypatch.setattr(portable_lib, "_load_for_executorch", refuse)
    found = executorch.time_ops(bundle, feeds())
    assert found.ops == ()
    assert found.reason == "this build of the runtime gives no trace: built without event tracer"
