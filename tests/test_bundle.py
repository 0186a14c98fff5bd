"""A bundle opens when every byte is what its manifest says; anything else is refused by file name."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import edgekit
from edgekit.bundle import (
    MAX_MANIFEST_BYTES,
    SCHEMA_VERSION,
    Artifact,
    Asset,
    Bundle,
    Manifest,
    PlanRecord,
    WeightPrecision,
    manifest_schema,
    read_golden,
    record_file,
    safe_relative,
    write_golden,
)
from edgekit.errors import BundleCorrupt, EdgekitError, InvalidInput
from edgekit.processing import ClassLabels, ImagePreprocess
from edgekit.types import DynamicDim, ModelSource, TensorSpec

SAMPLES = [({"x": np.arange(3, dtype=np.float32) + k}, {"y.z": np.array([k])}) for k in range(12)]
SCHEMA = json.loads(manifest_schema())


def make(root: Path) -> Path:
    """A valid bundle whose model nothing can run."""
    (root / "assets").mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"model bytes")
    (root / "model.onnx.data").write_bytes(b"weights")
    (root / "assets/labels.txt").write_text("cat\ndog\n")
    write_golden(root / "golden.npz", SAMPLES)
    known: Any = {"golden.npz": "golden", "model.onnx.data": "external_data", "assets/labels.txt": "processing"}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="tiny",
        source=ModelSource(kind="python", ref="a.py:b", sha256="0" * 64),
        device="generic-x86",
        plan=PlanRecord(device="generic-x86", format="onnx", precision="fp32", passes=({"pass": "float16"},)),
        precision=WeightPrecision(name="fp32", weight_bytes={"float32": 7}, quantized_ops=0, float_ops=1),
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y.z", dtype="int64", shape=(1,)),),
        dynamic=(DynamicDim(name="batch", minimum=1, maximum=8),),
        preprocess=ImagePreprocess(input="x", height=2, width=2),
        postprocess=ClassLabels(output="y.z"),
        artifacts=(
            Artifact(
                **record_file(root, "model.onnx"),
                format="onnx",
                runtime="onnxruntime",
                runtime_version_range="onnxruntime>=1.20",
            ),
        ),
        assets=tuple(Asset(**record_file(root, path), role=role) for path, role in known.items()),
        created_utc="2025-01-01T00:00:00Z",
    )
    (root / "manifest.json").write_text(manifest.to_json())
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "bundle")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A bundle whose manifest a fuzzer overwrites, and the manifest as it was."""
    root = make(tmp_path_factory.mktemp("fuzz") / "bundle")
    return root, (root / "manifest.json").read_bytes()


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads((root / "manifest.json").read_text())
    change(stored)
    (root / "manifest.json").write_text(json.dumps(stored))


def refused(root: Path, *words: str, error: type[Exception] = BundleCorrupt) -> None:
    with pytest.raises(error) as caught:
        Bundle.open(root)
    for word in words:
        assert word in str(caught.value)


def test_a_whole_bundle_opens(root: Path) -> None:
    bundle = Bundle.open(str(root))
    assert bundle.artifact.format == "onnx"
    assert bundle.artifact_path.read_bytes() == b"model bytes"
    assert bundle.model_bytes == len(b"model bytes") + len(b"weights")
    assert bundle.assets() == {"labels.txt": b"cat\ndog\n"}
    assert Manifest.from_json((root / "manifest.json").read_bytes()) == bundle.manifest
    for got, stored in zip(bundle.golden(), SAMPLES, strict=True):  # in order: sample 10 comes after sample 9
        for side, expected in zip(got, stored, strict=True):
            assert side.keys() == expected.keys()
            for name in side:
                np.testing.assert_array_equal(side[name], expected[name])
                assert side[name].dtype == expected[name].dtype


def test_an_opened_bundle_can_move(root: Path, tmp_path: Path) -> None:
    moved = shutil.move(root, tmp_path / "elsewhere")
    assert Bundle.open(moved).manifest.name == "tiny"


@pytest.mark.parametrize("where", ["nothing", "", "model.onnx"])
def test_what_is_no_bundle_says_how_to_make_one(root: Path, where: str) -> None:
    (root / "manifest.json").unlink()
    refused(root / where, "is not a bundle", "manifest.json", "edgekit export -o", error=InvalidInput)


@pytest.mark.parametrize("path", ["a" * 300, "a" * 5000, "a\0b"])
def test_a_path_that_no_system_has_is_no_bundle(path: str) -> None:
    with pytest.raises(InvalidInput, match="is not a bundle"):
        Bundle.open(path)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"not json", b"[]", b"null", b"{", b'{"schema_version": 1}', b'{"schema_version": "1"}', b"\xff\xfe{}",
        b'{"schema_version": 1e999}', b'{"schema_version": 1.5}', b"[" * 200_000, b'{"a":' * 200_000,
        b'{"schema_version": 1, "plan": {"passes": [{"a": ' + b"[" * 200_000, b'{"name": "\xed\xa0\x80"}',
    ],
    ids=lambda text: repr(text[:50]),
)  # fmt: skip
def test_a_manifest_that_is_no_manifest_is_named(root: Path, text: bytes) -> None:
    (root / "manifest.json").write_bytes(text)
    refused(root, "manifest.json")


def test_a_manifest_cut_anywhere_is_named(root: Path) -> None:
    whole = (root / "manifest.json").read_bytes()
    for size in range(0, len(whole.rstrip()) - 1, 7):
        (root / "manifest.json").write_bytes(whole[:size])
        refused(root, "manifest.json")


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99])
def test_a_newer_schema_asks_for_a_newer_edgekit(root: Path, version: int) -> None:
    edit(root, lambda m: m.update(schema_version=version, a_field_of_the_future=1))
    refused(root, "manifest.json", f"schema version {version}", "pip install --upgrade edgekit")


@pytest.mark.parametrize("version", [0, -1])
def test_a_schema_that_never_was_is_refused(root: Path, version: int) -> None:
    edit(root, lambda m: m.update(schema_version=version))
    refused(root, "manifest.json", f"{version}")


def test_a_manifest_of_absurd_size_is_not_read(root: Path) -> None:
    with (root / "manifest.json").open("ab") as stream:
        stream.truncate(MAX_MANIFEST_BYTES + 1)
    refused(root, "manifest.json", f"{MAX_MANIFEST_BYTES + 1} bytes")


def test_a_manifest_without_artifact_is_refused(root: Path) -> None:
    edit(root, lambda m: m.update(artifacts=[]))
    refused(root, "manifest.json", "lists no artifact")


@pytest.mark.parametrize("path", ["model.onnx", "model.onnx.data", "golden.npz", "assets/labels.txt"])
def test_every_file_is_checked_for_presence_size_and_content(root: Path, path: str) -> None:
    whole = (root / path).read_bytes()
    (root / path).write_bytes(whole[:-1])
    refused(root, path, f"{len(whole) - 1} bytes", f"says {len(whole)}")
    (root / path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(root, path, "altered", "sha256")
    (root / path).unlink()
    refused(root, path, "missing", "export it again")
    (root / path).mkdir()
    refused(root, path, "missing")


BAD_PATHS = (
    "", "/etc/passwd", "//host/share", "..", "../x", "assets/../../x", "a/..", "C:/x", "c:x", "a\\b", "..\\x", "a\0b",
)  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.parametrize("kind", ["artifacts", "assets"])
def test_a_path_that_leaves_the_bundle_is_refused(root: Path, path: str, kind: str) -> None:
    edit(root, lambda m: m[kind][0].update(path=path))
    refused(root, "manifest.json", "not a path inside the bundle")


@pytest.mark.parametrize("path", [".", "./", "assets", "no/such", "model.onnx/x", "~", "a" * 300, "a/" * 3000])
def test_a_path_to_nothing_is_refused(root: Path, path: str) -> None:
    edit(root, lambda m: m["artifacts"][0].update(path=path))
    refused(root)


@given(st.text(max_size=12) | st.lists(st.sampled_from(["..", ".", "a", "/", "\\", "C:"]), max_size=6).map("/".join))
def test_a_path_that_passes_stays_inside(path: str) -> None:
    base = Path("/bundle")
    try:
        joined = base / safe_relative(path, base)
    except BundleCorrupt:
        return
    assert Path(joined).resolve().is_relative_to(base)


@pytest.mark.parametrize("link", ["model.onnx", "assets"])
def test_a_link_that_leaves_the_bundle_is_refused(root: Path, tmp_path: Path, link: str) -> None:
    shutil.move(root / link, tmp_path / "outside")
    (root / link).symlink_to(tmp_path / "outside")
    refused(root, link, "link that leaves the bundle")


def test_a_link_inside_the_bundle_is_fine(root: Path) -> None:
    (root / "model.onnx").rename(root / "real.onnx")
    (root / "model.onnx").symlink_to("real.onnx")
    assert Bundle.open(root).artifact_path.read_bytes() == b"model bytes"


def test_a_link_to_itself_is_refused(root: Path) -> None:
    (root / "model.onnx").unlink()
    (root / "model.onnx").symlink_to("model.onnx")
    refused(root, "model.onnx")


def npz(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy(value: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)  # type: ignore[arg-type]
    return stream.getvalue()


def sample(content: bytes, number: object = 0, suffix: str = ".npy") -> bytes:
    return npz(**{f"in.{number}.x{suffix}": content, f"out.{number}.y{suffix}": content})


class Evil:
    """Unpickling this leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


GOOD = npy(np.zeros(2))
NOT_GOLDEN = {
    "empty": b"",
    "no zip": b"not a zip",
    "cut": sample(GOOD)[:-5],
    "one array": GOOD,
    "pickle": pickle.dumps(Evil()),
    "object array": npy(np.array([Evil()], object)),
    "stored object array": sample(npy(np.array([Evil()], object))),
    "stored pickle": sample(pickle.dumps(Evil())),
    "stored text": sample(b"text"),
    "stored text without suffix": sample(b"text", suffix=""),
    "cut array": sample(GOOD[:90]),
    "bare key": npz(**{"x.npy": GOOD}),
    "two parts": npz(**{"in.0.npy": GOOD}),
    "no such side": npz(**{"up.0.x.npy": GOOD}),
    "no number": sample(GOOD, "a"),
    "negative": sample(GOOD, -1),
    "no outputs": npz(**{"in.0.x.npy": GOOD}),
    "no inputs": npz(**{"out.0.x.npy": GOOD}),
    "no samples": npz(),
}


@pytest.mark.parametrize("kind", NOT_GOLDEN)
def test_golden_samples_that_are_none_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "golden.npz").write_bytes(NOT_GOLDEN[kind])
    with pytest.raises(BundleCorrupt, match=r"golden\.npz' is not a readable set of golden samples"):
        read_golden(tmp_path / "golden.npz")
    assert not Path("executed").exists()


def test_missing_golden_samples_are_named(root: Path) -> None:
    bundle = Bundle.open(root)
    (root / "golden.npz").unlink()
    with pytest.raises(BundleCorrupt, match=r"golden\.npz' is missing"):
        bundle.golden()


def test_golden_samples_that_the_manifest_does_not_vouch_for_are_not_read(root: Path) -> None:
    edit(root, lambda m: m.update(assets=[a for a in m["assets"] if a["role"] != "golden"]))
    with pytest.raises(BundleCorrupt, match=r"golden"):
        Bundle.open(root).golden()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=4), st.floats(0.3, 1))
def test_a_damaged_manifest_raises_nothing_else(
    shared: tuple[Path, bytes], flips: list[tuple[float, int]], kept: float
) -> None:
    root, damaged = shared[0], bytearray(shared[1])
    for place, value in flips:
        damaged[int(place * len(damaged))] = value
    (root / "manifest.json").write_bytes(damaged[: int(kept * len(damaged))])
    with suppress(EdgekitError):
        Bundle.open(root).golden()


def test_the_schema_accepts_real_manifests(root: Path) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(json.loads((root / "manifest.json").read_text()))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("name"), lambda m: m.update(colour="red"), lambda m: m.update(schema_version="1"),
        lambda m: m["artifacts"][0].update(bytes="many"), lambda m: m["assets"][0].update(role="evil"),
        lambda m: m["inputs"][0].update(dtype="float128"), lambda m: m["preprocess"].update(type="sound"),
    ],
)  # fmt: skip
def test_the_schema_and_the_parser_refuse_the_same(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(root, change)
    assert not Draft202012Validator(SCHEMA).is_valid(json.loads((root / "manifest.json").read_text()))
    refused(root, "manifest.json")


def test_the_shipped_schema_is_the_one_of_the_types() -> None:
    shipped = Path(edgekit.__file__).parent / "manifest.schema.json"
    if not shipped.exists():
        pytest.skip(f"{shipped} is missing: make schema")
    assert shipped.read_text(encoding="utf-8") == manifest_schema()
