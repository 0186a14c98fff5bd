"""The bundle: a folder with the model, what goes around it, and a manifest that vouches for every byte.

    OUT/manifest.json    this module's `Manifest`
    OUT/model.onnx       the artifact (and external data files beside it)
    OUT/golden.npz       real inputs and PyTorch's outputs: `in.<sample>.<tensor>`, `out.<sample>.<tensor>`
    OUT/assets/          labels, tokenizer
    OUT/model_vela.tflite    the model after a vendor's compiler, for devices that need one
    OUT/report.html      the manifest as a page for people; nothing reads it, so the manifest does not vouch for it

Nothing in a bundle is executed or unpickled, and no path in it may leave the folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import numpy as np

from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.generation import Generation
from edgekit.measurement import AgainstFloat, Measurement
from edgekit.parity import Parity
from edgekit.processing import Arrays, Postprocess, Preprocess
from edgekit.types import Change, DynamicDim, ModelSource, Precision, TensorSpec, Value

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
REPORT = "report.html"
PARTS = "parts.json"  # of a folder with several bundles that are one model; see `edgekit.parts`
MAX_MANIFEST_BYTES = 64 << 20  # a sane one is under 1 MB


class _FileRecord(Value, frozen=True, kw_only=True):
    path: str  # relative to the bundle, with forward slashes
    bytes: int
    sha256: str


class Unpacked(_FileRecord, frozen=True, kw_only=True):
    """The model file that a packed one holds; see `edgekit.lossless_artifact`."""

    weights: int  # that are coded
    bits_per_weight: float | None  # of these, as stored; as float32 they have 32. None where none are coded


class Artifact(_FileRecord, frozen=True, kw_only=True):
    """A model file and the runtime that reads it."""

    format: str
    runtime: str
    runtime_version_range: str  # "onnxruntime>=1.20,<2"
    unpacked: Unpacked | None = None  # what the runtime gets, where the file is packed


class Asset(_FileRecord, frozen=True, kw_only=True):
    """A file the artifact or its pre- and postprocessing needs."""

    role: Literal["golden", "external_data", "processing", "intermediate", "compiled"]


class WeightPrecision(Value, frozen=True, kw_only=True):
    """What the artifact really holds, read back from the file: bytes of weights by dtype."""

    name: Precision  # what was asked for and found
    weight_bytes: dict[str, int]
    quantized_ops: int  # ops that compute in fewer than 16 bits
    float_ops: int  # ops with weights that stayed in float


class CalibrationRecord(Value, frozen=True, kw_only=True):
    """The samples that set the activation ranges."""

    origin: str
    samples: int
    sha256: str


class PlanRecord(Value, frozen=True, kw_only=True):
    """The plan as plain data; `edgekit.planning` gives it behaviour."""

    device: str
    format: str
    precision: Precision
    passes: tuple[dict[str, Any], ...]
    options: dict[str, Any] = {}  # of the exporter
    compiler: str | None = None  # of the device's vendor, that the artifact goes through
    reasons: tuple[str, ...] = ()


class Fallback(Value, frozen=True, kw_only=True):
    """An op that did not run on the unit meant for it."""

    op: str
    where: str  # the path of its PyTorch module where known, else the artifact's own name for it
    source: str | None = None  # "model.py:41"
    reason: str


class Delegation(Value, frozen=True, kw_only=True):
    """Where every op of one inference ran."""

    unit: str  # meant to run them all: "xnnpack", "cpu"
    units: dict[str, dict[str, int]]  # unit -> op type -> ops
    partitions: int = 1  # pieces that `unit` got; data crosses between units at their borders
    layout_copies: int = 0  # ops that only move data: transposes and reorders
    layout_copies_share: float | None = None  # of one call's time; None where the runtime does not say
    float_islands: tuple[str, ...] = ()  # in a quantised model: ops that computed in float
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def delegated_share(self) -> float:
        """Ops that ran on `unit`, of all; 1 for a graph without ops."""
        counts = {unit: sum(ops.values()) for unit, ops in self.units.items()}
        ops = sum(counts.values())
        return counts.get(self.unit, 0) / ops if ops else 1.0


class CompilerEstimate(Value, frozen=True, kw_only=True):
    """What a compiler's model of its device says of one inference. Nothing was run: a measurement has its own type."""

    cycles: int  # of the device's clock
    latency_s: float | None = None  # None where the compiler gives cycles of a part of the ops only
    memory_bytes: dict[str, int]  # by the compiler's name of the memory: "sram", "off_chip_flash"


class CompiledCheck(Value, frozen=True, kw_only=True):
    """How far a compiled file was checked where it was made: on a machine that cannot run it."""

    by: str | None  # what ran in the device's place: "TOSA reference model 2026.5.0"; None: nothing could
    covers: str  # what was checked
    excludes: str  # what was not, beside the device itself
    parity: Parity | None = None  # of what ran, on the golden samples


class Compiled(Value, frozen=True, kw_only=True):
    """The model after a vendor's compiler. It was not run; its files are assets of the bundle."""

    path: str  # of the file or folder that the vendor's tools take
    bytes: int
    compiler: str
    version: str
    precision: Precision  # its arithmetic, where it differs from the artifact's too
    target: dict[str, str]  # the compiler's own words for what it was made for
    delegation: Delegation | None  # where the compiler put each op; None where only the device decides
    estimate: CompilerEstimate | None  # None where the compiler gives none
    check: CompiledCheck


class Manifest(Value, frozen=True, kw_only=True):
    """Everything a runtime, a person or a script needs to know about a bundle."""

    schema_version: int
    name: str
    source: ModelSource
    device: str
    plan: PlanRecord
    precision: WeightPrecision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic: tuple[DynamicDim, ...] = ()
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    generation: Generation | None = None  # of a language model
    artifacts: tuple[Artifact, ...]
    assets: tuple[Asset, ...] = ()
    calibration: CalibrationRecord | None = None
    changes: tuple[Change, ...] = ()
    parity: Parity | None = None
    delegation: Delegation | None = None
    compiled: Compiled | None = None
    measurements: tuple[Measurement, ...] = ()
    against_float: AgainstFloat | None = None
    warnings: tuple[str, ...] = ()
    tool_versions: dict[str, str] = {}
    created_utc: str


def manifest_schema() -> str:
    """The JSON Schema of `manifest.json`, as it ships in `manifest.schema.json`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Manifest)}
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2).decode() + "\n"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files were checked against its manifest."""

    path: Path
    manifest: Manifest
    unpacked_at: Path | None = None  # the model file of a packed one, while it is opened

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and check a bundle. Raises `BundleCorrupt` that names the file, `InvalidInput` when it is no bundle."""
        root = Path(path)
        manifest = _read_manifest(root)
        for record in (*manifest.artifacts, *manifest.assets):
            _check_file(root, record)
        return cls(root, manifest)

    @property
    def artifact(self) -> Artifact:
        """The model file."""
        return self.manifest.artifacts[0]

    @property
    def artifact_path(self) -> Path:
        """Where the model file lies."""
        return self.unpacked_at or self.path / self.artifact.path

    @property
    def model_bytes(self) -> int:
        """Size of the model file with its external data."""
        data = sum(a.bytes for a in self.manifest.assets if a.role == "external_data")
        return sum(a.bytes for a in self.manifest.artifacts) + data

    def assets(self) -> Mapping[str, bytes]:
        """The files that pre- and postprocessing read, by their plain name."""
        wanted = (a for a in self.manifest.assets if a.role == "processing")
        return {PurePosixPath(a.path).name: (self.path / a.path).read_bytes() for a in wanted}

    def golden(self) -> list[tuple[Arrays, Arrays]]:
        """Real inputs with PyTorch's outputs. Raises `BundleCorrupt` when the file is not what it should be."""
        if not any(asset.role == "golden" for asset in self.manifest.assets):
            raise BundleCorrupt(f"'{self.path / MANIFEST}' lists no {GOLDEN}: it was exported without golden samples")
        return read_golden(self.path / GOLDEN)


def write_golden(path: Path, pairs: list[tuple[Arrays, Arrays]]) -> None:
    """Store inputs and expected outputs, sample by sample."""
    named = {
        f"{side}.{index}.{name}": array
        for index, pair in enumerate(pairs)
        for side, arrays in zip(("in", "out"), pair, strict=True)
        for name, array in arrays.items()
    }
    np.savez_compressed(path, **named)  # type: ignore[arg-type]


def read_golden(path: Path) -> list[tuple[Arrays, Arrays]]:
    """The inverse of `write_golden`; never unpickles."""
    pairs: dict[int, tuple[Arrays, Arrays]] = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                side, index, name = key.split(".", 2)
                array = stored[key]
                if not isinstance(array, np.ndarray):  # numpy hands out foreign members as bytes
                    raise ValueError(f"'{key}' is not an array")
                pairs.setdefault(int(index), ({}, {}))[("in", "out").index(side)][name] = array
        if sorted(pairs) != list(range(len(pairs))) or not pairs or not all(x and y for x, y in pairs.values()):
            raise ValueError("samples must be numbered from 0, each with inputs and outputs")
    except FileNotFoundError as error:
        raise BundleCorrupt(f"'{path}' is missing: the bundle was exported without golden samples") from error
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damaged archives
        raise BundleCorrupt(f"'{path}' is not a readable set of golden samples: {error}") from error
    return [pairs[index] for index in sorted(pairs)]


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_file(root: Path, path: str) -> dict[str, Any]:
    """Path, size and hash of a file inside a bundle, for `Artifact` or `Asset`."""
    return {"path": path, "bytes": (root / path).stat().st_size, "sha256": file_sha256(root / path)}


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST
    if _is_file(root / PARTS):
        raise InvalidInput(f"'{root}' holds a model in parts, each a bundle: name one, as in '{root / 'encoder'}'")
    if not _is_file(path):
        raise InvalidInput(f"'{root}' is not a bundle: it has no {MANIFEST}. Make one with: edgekit export -o {root}")
    if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
        raise BundleCorrupt(f"'{path}' has {size} bytes; no sane manifest has more than {MAX_MANIFEST_BYTES}")
    text = path.read_bytes()
    try:
        version = msgspec.json.decode(text, type=_Versioned).schema_version
        if version < 1:
            raise BundleCorrupt(f"'{path}' has schema version {version}, which never was")
        if version > SCHEMA_VERSION:
            raise BundleCorrupt(
                f"'{path}' has schema version {version}, this edgekit reads up to {SCHEMA_VERSION}: "
                "pip install --upgrade edgekit"
            )
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleCorrupt(f"'{path}' is not a valid manifest: {error}") from error
    if not manifest.artifacts:
        raise BundleCorrupt(f"'{path}' lists no artifact")
    return manifest


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


class _Versioned(msgspec.Struct):
    schema_version: int


def _check_file(root: Path, record: _FileRecord) -> None:
    path = root / safe_relative(record.path, root)
    if not _is_file(path):
        raise BundleCorrupt(f"'{path}' is missing: copy the whole bundle folder again, or export it again")
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleCorrupt(f"'{path}' is a link that leaves the bundle")
    if (size := path.stat().st_size) != record.bytes:
        raise BundleCorrupt(f"'{path}' has {size} bytes, the manifest says {record.bytes}: it was cut or replaced")
    if file_sha256(path) != record.sha256:
        raise BundleCorrupt(f"'{path}' was altered: its sha256 is not the manifest's")


def safe_relative(path: str, root: Path) -> PurePosixPath:
    """`path` if it stays inside the bundle on every system, else `BundleCorrupt`."""
    if not stays_inside(path):
        raise BundleCorrupt(f"'{root / MANIFEST}' names the file '{path}', which is not a path inside the bundle")
    return PurePosixPath(path)


def stays_inside(path: str) -> bool:
    """Whether a path with forward slashes names something below the folder it is joined to, on every system."""
    pure = PurePosixPath(path)
    foreign = "\\" in path or "\0" in path or re.match("[A-Za-z]:", path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and not foreign
