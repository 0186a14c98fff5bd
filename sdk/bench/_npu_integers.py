"""efficientnet_lite0 in int8: every op in integers beside LiteRT's reference kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgekit.bench._npu_figure import Figure
from edgekit.compression import Progress
from edgekit.drafting import ExportOptions
from edgekit.npu.integer.check import integer_check
from edgekit.pipeline import export
from edgekit.profile import find_device
from edgekit.source import load

MODEL, DEVICE = "zoo:efficientnet_lite0", "raspberrypi5"  # any that takes TFLite: nothing runs there


def figures(progress: Progress) -> Iterator[Figure]:
    """How many ops write another value than LiteRT. Raises `ToolchainMissing` without the exporter's packages."""
    options = ExportOptions(format="tflite", precision="int8", options=("integer_io=true",), measure=False)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(load(MODEL), find_device(DEVICE), Path(folder) / "out", options=options, progress=progress)
        progress("run every op in integers")
        found = integer_check(bundle)
    yield Figure(
        name="efficientnet_lite0 int8: ops that are float or write other integers than LiteRT",
        value=len(found.islands) + len(found.differences),
        bar=0,
        at_most=True,
        how=f"{sum(found.ops.values())} ops, {found.values:,} values",
    )
