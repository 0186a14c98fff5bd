"""efficientnet_lite0 in int8 on Ethos-U NPUs: the share of its MACs that Arm's compiler puts on the NPU."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgekit.bench._npu_figure import Figure
from edgekit.bundle import Bundle
from edgekit.compression import Progress
from edgekit.cost.kernels import PRODUCTS, work
from edgekit.drafting import ExportOptions
from edgekit.errors import EdgekitError
from edgekit.graph import capture
from edgekit.pipeline import export
from edgekit.profile import find_device
from edgekit.source import load

MODEL, DEVICES = "zoo:efficientnet_lite0", ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")


def figures(progress: Progress) -> Iterator[Figure]:
    """One share for each NPU. Raises `ToolchainMissing` where Vela is not installed."""
    model = load(MODEL)
    macs = Counter[str]()
    for kernel in work(capture(model)).kernels:
        if kernel.op_class in PRODUCTS:
            macs[kernel.module] += kernel.ops // 2
    for device in DEVICES:
        with tempfile.TemporaryDirectory() as folder:
            bundle = export(
                model,
                find_device(device),
                Path(folder) / "out",
                options=ExportOptions(measure=False),
                progress=progress,
            )
            yield _share(bundle, device, macs)


def _share(bundle: Bundle, device: str, macs: Counter[str]) -> Figure:
    compiled = bundle.manifest.compiled
    if compiled is None or (placed := compiled.delegation) is None:
        raise EdgekitError(f"the export for {device} was not compiled")
    left = [each.where for each in placed.fallbacks]
    ops = sum(sum(each.values()) for each in placed.units.values())
    share = 1 - sum(size for module, size in macs.items() if module in left) / macs.total()
    how = f"{ops - len(left)} of {ops} ops there, by the report of {compiled.compiler} {compiled.version}"
    return Figure(
        name=f"efficientnet_lite0 int8 on {device}: MACs on the NPU", value=100 * share, unit="%", bar=100, how=how
    )
