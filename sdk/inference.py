"""Open a bundle in the runtime it names, and run it on photographs, text or arrays. No torch needed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

import msgspec
import numpy as np

from edgekit import registry
from edgekit.bundle import PARTS, Bundle, Delegation
from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.folder import write_errors
from edgekit.lossless_artifact import PackedFile
from edgekit.op_profile import OpProfile
from edgekit.processing import Array, Arrays, ImagePreprocess, check_arrays, read_npz
from edgekit.session import Runtime, Session
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.parts import BundleInParts
    from edgekit.segmenting import SegmentSession

RUNTIMES = "edgekit.runtimes"


@overload
def open_session(bundle: Bundle, *, threads: int = 1) -> Session: ...


@overload
def open_session(bundle: BundleInParts, *, threads: int = 1) -> SegmentSession: ...


@overload
def open_session(bundle: str | Path, *, threads: int = 1) -> Session | SegmentSession: ...


def open_session(bundle: Bundle | BundleInParts | str | Path, *, threads: int = 1) -> Session | SegmentSession:
    """Load a bundle into its runtime; one in parts makes a `SegmentSession`.

    Raises `InvalidInput` when there is no bundle, `BundleCorrupt` when its files are damaged, `ToolchainMissing` when
    the runtime is not installed.
    """
    if threads < 1:
        raise InvalidInput(f"threads must be 1 or more, not {threads}")
    found = bundle if isinstance(bundle, Bundle) else _opened(bundle)
    if not isinstance(found, Bundle):
        from edgekit.segmenting import SegmentSession  # which opens each part here

        return SegmentSession(found, threads=threads)
    runtime: Runtime = registry.load(RUNTIMES, found.artifact.runtime)
    with unpacked(found) as plain:
        return runtime.open_session(plain, threads=threads)


def _opened(bundle: BundleInParts | str | Path) -> Bundle | BundleInParts:
    if isinstance(bundle, str | Path) and not (Path(bundle) / PARTS).is_file():
        return Bundle.open(bundle)
    from edgekit.parts import BundleInParts  # which opens each part here

    return bundle if isinstance(bundle, BundleInParts) else BundleInParts.open(bundle)


def delegation(bundle: Bundle, feeds: Arrays) -> Delegation:
    """Run a bundle once, and report which unit ran each op."""
    runtime: Runtime = registry.load(RUNTIMES, bundle.artifact.runtime)
    with unpacked(bundle) as plain:
        return runtime.delegation(plain, feeds)


def time_ops(bundle: Bundle, feeds: Arrays, *, threads: int = 1) -> OpProfile:
    """The time of each op of a bundle, by its runtime's own profiler."""
    runtime: Runtime = registry.load(RUNTIMES, bundle.artifact.runtime)
    with unpacked(bundle) as plain:
        return runtime.time_ops(plain, feeds, threads=threads)


@contextlib.contextmanager
def unpacked(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle with its model file as it was exported, while a runtime opens it.

    Of a packed one the file is in memory, and gone when nobody maps it any more; where the system has no such files it
    is a temporary one. Raises `CorruptWeights` that names what cannot be decoded.
    """
    packed, plain = bundle.artifact, bundle.artifact.unpacked
    if plain is None:
        yield bundle
        return
    artifact = msgspec.structs.replace(packed, path=plain.path, bytes=plain.bytes, sha256=plain.sha256, unpacked=None)
    with _scratch_file() as (stream, path):
        with write_errors(path):
            for piece in PackedFile.open(bundle.artifact_path).content():
                stream.write(piece.data)
            stream.flush()
        try:
            manifest = msgspec.structs.replace(bundle.manifest, artifacts=(artifact,))
            yield replace(bundle, manifest=manifest, unpacked_at=path)
        except BundleCorrupt as error:  # that names a file which is gone when it is read
            raise BundleCorrupt(str(error).replace(str(path), str(bundle.artifact_path))) from error


@contextlib.contextmanager
def _scratch_file() -> Iterator[tuple[IO[bytes], Path]]:
    """An empty file with a path that other programs can open too, for as long as this lasts."""
    descriptors = Path(f"/proc/{os.getpid()}/fd")
    if hasattr(os, "memfd_create") and descriptors.is_dir():
        with os.fdopen(os.memfd_create("edgekit"), "wb") as stream:
            yield stream, descriptors / str(stream.fileno())
    else:
        with tempfile.NamedTemporaryFile(prefix="edgekit-") as stream:
            yield stream, Path(stream.name)


def prepare(bundle: Bundle, source: str | Path | Array) -> Arrays:
    """Model inputs from a photograph, a text, or an .npz with one array per input."""
    specs, preprocess = bundle.manifest.inputs, bundle.manifest.preprocess
    if isinstance(source, str | Path) and str(source).endswith(".npz"):
        arrays = read_npz(Path(source))
        check_arrays(arrays, specs)
        return arrays
    if preprocess is None:
        raise InvalidInput(
            f"this bundle carries no preprocessing: give --input file.npz with {', '.join(map(str, specs))}"
        )
    if isinstance(preprocess, ImagePreprocess):
        return preprocess(source, bundle.assets())
    if not isinstance(source, str):
        raise InvalidInput("this bundle takes text")
    return preprocess(source, bundle.assets())


def answer(bundle: Bundle, outputs: Arrays) -> dict[str, Any]:
    """What the outputs mean: labels, an embedding, or figures of each tensor where nothing says more."""
    if bundle.manifest.postprocess is not None:
        return bundle.manifest.postprocess(outputs, bundle.assets())
    return {
        "outputs": {
            name: {
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "mean": float(array.mean()),
                "std": float(array.std()),
                "min": float(array.min()),
                "max": float(array.max()),
            }
            for name, array in outputs.items()
        }
    }


def sample_feeds(bundle: Bundle) -> Arrays:
    """Inputs to time a bundle with: its first golden sample, or ones where it has none."""
    if _has_golden(bundle):
        return bundle.golden()[0][0]
    return {spec.name: np.ones(_smallest(bundle, spec), dtype=spec.dtype) for spec in bundle.manifest.inputs}


def sample_source(bundle: Bundle) -> str:
    """Where `sample_feeds` takes its inputs from."""
    return "golden sample 0" if _has_golden(bundle) else "ones"


def _has_golden(bundle: Bundle) -> bool:
    return any(asset.role == "golden" for asset in bundle.manifest.assets)


def _smallest(bundle: Bundle, spec: TensorSpec) -> list[int]:
    least = {dim.axis_name: dim.minimum for dim in bundle.manifest.dynamic}
    return [least[size] if isinstance(size, str) else size for size in spec.shape]
