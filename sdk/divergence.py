"""Name the first module whose output in the artifact is not PyTorch's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch

from edgekit.bundle import Bundle, record_file
from edgekit.inference import open_session, unpacked
from edgekit.model import Model
from edgekit.parity import ModuleError, sqnr_db
from edgekit.processing import Array, Arrays, relaid
from edgekit.types import TensorSpec

Expose = Callable[[Path, Path], Mapping[str, TensorSpec]]  # (artifact, out) -> the module outputs that `out` returns


def module_errors(
    model: Model, output_of: Mapping[str, str], bundle: Bundle, expose: Expose, feeds: Arrays
) -> list[ModuleError]:
    """SQNR of every module's output on one sample, in execution order, each run once and matched by shape.

    `model` answers like the one before any pass; `output_of` knows for which of its modules each new one answers.
    `feeds` are in the model's own layout.
    """
    with tempfile.TemporaryDirectory() as folder:
        with unpacked(bundle) as plain:
            out = Path(folder) / plain.artifact.path
            found = expose(plain.artifact_path, out)
        exposed = {output_of.get(path, path): spec for path, spec in found.items()}
        artifact = msgspec.structs.replace(plain.artifact, **record_file(Path(folder), plain.artifact.path))
        outputs = (*bundle.manifest.outputs, *exposed.values())
        manifest = msgspec.structs.replace(bundle.manifest, artifacts=(artifact,), outputs=outputs)
        with open_session(Bundle(Path(folder), manifest)) as session:
            actual = session.run(relaid(feeds, model.inputs, bundle.manifest.inputs))
    expected = _module_outputs(model, feeds)
    answers = {path: _channels_first(actual[spec.name], spec) for path, spec in exposed.items()}
    return [
        ModuleError(module=path, sqnr_db=sqnr_db(expected[path], answers[path]))
        for path in expected
        if path in answers and expected[path].shape == answers[path].shape
    ]


def worst(errors: list[ModuleError], count: int = 10) -> list[ModuleError]:
    """The modules that are furthest off, the worst first."""
    return sorted(errors, key=lambda error: error.sqnr_db)[:count]


def _channels_first(array: Array, spec: TensorSpec) -> Array:
    """An exposed tensor in PyTorch's layout."""
    return np.moveaxis(array, -1, 1) if spec.layout == "NHWC" else array


def first_divergent(errors: list[ModuleError], threshold_db: float) -> ModuleError | None:
    """The first module in execution order below the threshold."""
    return next((error for error in errors if error.sqnr_db < threshold_db), None)


def _module_outputs(model: Model, feeds: Arrays) -> dict[str, Array]:
    """The tensor each module returned, for modules that ran exactly once, in the order they finished."""
    seen: dict[str, list[Array]] = {}

    def note(path: str) -> object:
        def hook(module: torch.nn.Module, args: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                seen.setdefault(path, []).append(output.numpy(force=True).copy())

        return hook

    handles = [m.register_forward_hook(note(path)) for path, m in model.module.named_modules() if path]
    try:
        model(feeds)
    finally:
        for handle in handles:
            handle.remove()
    return {path: outputs[0] for path, outputs in seen.items() if len(outputs) == 1}
