"""Open a bundle in the runtime it names, and run it on photographs, text or arrays. No torch needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.errors import InvalidInput
from edgekit.processing import Array, Arrays, ImagePreprocess, check_arrays, read_npz
from edgekit.session import Session
from edgekit.types import TensorSpec

RUNTIMES = "edgekit.runtimes"


def open_session(bundle: Bundle | str | Path, *, threads: int = 1) -> Session:
    """Load a bundle into its runtime.

    Raises `InvalidInput` when there is no bundle, `BundleCorrupt` when its files are damaged, `ToolchainMissing` when
    the runtime is not installed.
    """
    if threads < 1:
        raise InvalidInput(f"threads must be 1 or more, not {threads}")
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    session: Session = registry.load(RUNTIMES, found.artifact.runtime).open_session(found, threads=threads)
    return session


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
    if any(asset.role == "golden" for asset in bundle.manifest.assets):
        return bundle.golden()[0][0]
    return {spec.name: np.ones(_smallest(bundle, spec), dtype=spec.dtype) for spec in bundle.manifest.inputs}


def _smallest(bundle: Bundle, spec: TensorSpec) -> list[int]:
    least = {dim.axis_name: dim.minimum for dim in bundle.manifest.dynamic}
    return [least[size] if isinstance(size, str) else size for size in spec.shape]
