"""Forecast of bytes: the artifact, the model at run time, and the export itself."""

from __future__ import annotations

from torch.export import ExportedProgram

from edgekit.compression import CompressedModel
from edgekit.graph import peak_activation_bytes
from edgekit.types import Value

TOOLCHAIN_BYTES = 1300 << 20  # two processes with torch, one with a toolchain besides (measured: 1.0 to 1.3 GB)
EXPORT_COPIES = 6  # of the float weights at worst: model, a pass's copy, trace, graph, quantiser, file (measured: 5.7)
GRAPH_BYTES = 200 << 10  # of structure and metadata in an exported file


class MemoryForecast(Value, frozen=True, kw_only=True):
    """Predicted from shapes and dtypes before any work; not measured."""

    artifact_bytes: int
    weight_bytes: int  # once loaded
    peak_activation_bytes: int  # every tensor its own memory: an upper bound
    export_peak_bytes: int  # resident memory of the exporting processes

    @property
    def run_bytes(self) -> int:
        """Weights and activations together; the runtime's own code comes on top."""
        return self.weight_bytes + self.peak_activation_bytes


def forecast_memory(compressed: CompressedModel, program: ExportedProgram, weights: int) -> MemoryForecast:
    """What exporting and running `compressed` will take; `weights` are the bytes before any pass."""
    stored = weights - sum(change.bytes_before - change.bytes_after for change in compressed.changes)
    activations = peak_activation_bytes(program)
    scheme = compressed.quantization
    if scheme and scheme.scheme in ("static", "cast"):
        activations = activations // (4 if scheme.scheme == "static" else 2)
    return MemoryForecast(
        artifact_bytes=stored + GRAPH_BYTES,
        weight_bytes=weights if compressed.codec else stored,
        peak_activation_bytes=activations,
        export_peak_bytes=TOOLCHAIN_BYTES + EXPORT_COPIES * weights,
    )
