"""`model.pt2`: a program saved by `torch.export.save`.

`torch.export.load` unpickles some records and loads native libraries, so a file could run code. Here only archives that
hold raw tensors, JSON and weights-only example inputs get that far: every record is checked against a list first.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import InvalidInput, UnsupportedModel
from edgekit.source import Loaded, LoadOptions

PLAIN = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|extra/[\w./-]+"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|data/(weights|constants)/model_(weights|constants)_config\.json|data/sample_inputs/model\.pt)"
)


def load(ref: str, options: LoadOptions) -> Loaded:
    """Load an exported program whose archive can run no code."""
    path = Path(ref)
    if not path.is_file():
        raise InvalidInput(f"no file '{ref}'")
    refuse_code(path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many types for damaged archives
        raise InvalidInput(f"'{ref}' cannot be loaded by torch {torch.__version__}: {error}") from error
    args, kwargs = program.example_inputs or ((), {})
    tensors = [*args, *kwargs.values()]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise UnsupportedModel(
            f"'{ref}' was saved with example inputs that are not all plain tensors; export it with some"
        )
    names = [str(name) for name in program.graph_signature.user_inputs]
    return Loaded(
        module=_Program(program.module(check_guards=False), names, len(args), tuple(kwargs)),
        example=dict(zip(names, tensors, strict=True)),
    )


class _Program(nn.Module):
    """An exported program called by keyword, in evaluation mode for good."""

    def __init__(self, graph: nn.Module, names: list[str], positional: int, keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.graph = graph
        self.names = names
        self.positional = positional
        self.keywords = keywords
        self.training = False

    def forward(self, **inputs: Tensor) -> Any:
        values = [inputs[name] for name in self.names]
        return self.graph(
            *values[: self.positional], **dict(zip(self.keywords, values[self.positional :], strict=True))
        )


def refuse_code(path: Path) -> None:
    """Raise `InvalidInput` unless no record of the archive can run code when torch loads it."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                record = name.partition("/")[2]
                if not PLAIN.fullmatch(record) or ".." in record:
                    raise _refusal(path, record, "is no plain tensor, JSON or text")
                if record.endswith("_config.json"):
                    _refuse_pickled_tensors(path, json.loads(archive.read(name))["config"])
                elif record.startswith("data/sample_inputs/"):
                    _refuse_objects(path, record, archive.read(name))
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise InvalidInput(f"'{path}' is not a .pt2 archive: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"'{path}' has a damaged index of weights: {error!r}") from error


def _refuse_pickled_tensors(path: Path, config: dict[str, Any]) -> None:
    for tensor, record in config.items():
        if record["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", record["path_name"]):
            raise _refusal(path, tensor, "is stored as a pickle")


def _refuse_objects(path: Path, record: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # damaged or not plain: either way torch.export.load would go on to unpickle it
        raise _refusal(path, record, "holds more than tensors") from error


def _refusal(path: Path, record: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"'{path}' is refused: record '{record}' {why} and could run code when loaded. Save it again with "
        "torch.export.save from dense CPU tensors, or give the module itself as file.py:factory"
    )
