"""Name the first module whose output in the artifact is not PyTorch's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import torch

from edgekit.bundle import Bundle, record_file
from edgekit.compression import CompressedModel
from edgekit.exporting import Exporter
from edgekit.inference import open_session
from edgekit.model import Model
from edgekit.parity import sqnr_db
from edgekit.processing import Array, Arrays
from edgekit.types import Value


class ModuleError(Value, frozen=True, kw_only=True):
    """How far one module's output is off."""

    module: str
    sqnr_db: float


def module_errors(
    model: Model, compressed: CompressedModel, bundle: Bundle, exporter: Exporter, feeds: Arrays
) -> list[ModuleError]:
    """SQNR of every module's output on one sample, in execution order, each run once and matched by shape.

    The reference is the model before any pass; `compressed` knows for which of its modules each new one answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / bundle.artifact.path
        found = exporter.expose(bundle.artifact_path, out)
        exposed = {compressed.output_of.get(path, path): spec for path, spec in found.items()}
        artifact = msgspec.structs.replace(bundle.artifact, **record_file(Path(folder), bundle.artifact.path))
        outputs = (*bundle.manifest.outputs, *exposed.values())
        manifest = msgspec.structs.replace(bundle.manifest, artifacts=(artifact,), outputs=outputs)
        with open_session(Bundle(Path(folder), manifest)) as session:
            actual = session.run(feeds)
    expected = _module_outputs(model, feeds)
    return [
        ModuleError(module=path, sqnr_db=sqnr_db(expected[path], actual[exposed[path].name]))
        for path in expected
        if path in exposed and expected[path].shape == actual[exposed[path].name].shape
    ]


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
