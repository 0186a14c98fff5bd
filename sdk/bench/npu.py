"""Do the claims about NPUs hold? `edgekit bench npu`: each figure of the documentation beside its bar.

A part is a private file here, `_npu_<part>.py`, with one function `figures(progress)`. A part whose toolchain is not
installed is told with the reason, and counts as nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import edgekit
from edgekit.bench._npu_figure import Figure
from edgekit.compression import Progress, silent
from edgekit.errors import ToolchainMissing, unknown_name
from edgekit.host import host_state
from edgekit.measurement import HostState
from edgekit.types import Value

PARTS = ("integers", "outliers", "reference", "rewrites", "student", "vela", "vit")


class NpuBench(Value, frozen=True, kw_only=True):
    """What each part found, and the machine that computed it. Nothing here ran on an NPU."""

    figures: dict[str, tuple[Figure, ...]]  # by part
    missing: dict[str, str]  # part -> why it was left out
    machine: HostState
    version: str  # of edgekit


def run(parts: Sequence[str] = (), progress: Progress = silent) -> NpuBench:
    """The named parts, all of them when none is named. Raises `UnknownName`."""
    figures, missing = dict[str, tuple[Figure, ...]](), dict[str, str]()
    for part in parts or PARTS:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
        try:
            figures[part] = tuple(import_module(f"edgekit.bench._npu_{part}").figures(progress))
        except ToolchainMissing as error:
            missing[part] = str(error)
    return NpuBench(figures=figures, missing=missing, machine=host_state(), version=edgekit.__version__)


def table(found: NpuBench) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, a figure each."""
    rows = [
        [
            each.name,
            each.shown,
            f"{'at most' if each.at_most else 'at least'} {each.bar:g}",
            "ok" if each.ok else "MISSED",
        ]
        for part in found.figures.values()
        for each in part
    ]
    return ["figure", "found", "bar", ""], rows
