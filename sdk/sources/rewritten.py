"""A folder that `edgekit analyze --fix` wrote: the model as an NPU runs it, with what the original had around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekit.model import Loaded, LoadOptions
from edgekit.npu.folder import PROGRAM, read_rewritten
from edgekit.sources import pt2


def load(ref: str, options: LoadOptions) -> Loaded:
    """Load the program; no code of the original is needed or run.

    Raises `InvalidInput` and `BundleCorrupt` for a folder that is not what was written.
    """
    folder = Path(ref)
    record, assets = read_rewritten(folder)
    return replace(
        pt2.load(str(folder / PROGRAM), options),
        preprocess=record.preprocess,
        postprocess=record.postprocess,
        assets=assets,
        calibration=record.calibration,
        evaluation=record.evaluation,
        dynamic=record.dynamic,
    )
