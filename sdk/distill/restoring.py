"""Open a distilled folder whose student only a program can build."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgekit.model import LoadOptions, Model, make_model
from edgekit.sources.distilled import load
from edgekit.types import ModelSource


def restore(folder: str | Path, student: nn.Module, *, trust_remote_code: bool = False) -> Model:
    """The model in a folder that `distill` wrote, with the folder's weights in `student`, built as it was then.

    Raises what `edgekit.load` does of such folders, and `CorruptWeights` where the weights have other names or shapes
    than the student's.
    """
    options = LoadOptions(trust_remote_code=trust_remote_code)
    loaded = load(str(folder), options, student)
    return make_model(ModelSource(kind="distilled", ref=str(folder)), loaded, options)
