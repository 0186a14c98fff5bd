"""What the folder of a rewritten model holds: a model source like any other, without anybody's code.

OUT/model.pt2        the rewritten program, with each op's module path and source line
OUT/rewritten.json   this module's `RewrittenModel`: where it came from, and all that was done
OUT/assets/          labels, tokenizer
OUT/audit.json, OUT/audit.html    what the NPU makes of it, for people: nothing reads them
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from edgekit.bundle import record_file, stays_inside
from edgekit.errors import BundleCorrupt, InvalidInput, UnsupportedModel, reason_of
from edgekit.folder import read_value
from edgekit.graph import capture
from edgekit.model import Model
from edgekit.npu.adapting import AdaptationRecord
from edgekit.npu.rewriting import RewriteRecord
from edgekit.processing import Postprocess, Preprocess
from edgekit.quiet import quiet
from edgekit.source import REWRITTEN
from edgekit.types import DynamicDim, ModelSource, Value

PROGRAM, ASSETS = "model.pt2", "assets"
SCHEMA_VERSION = 1
MAX_RECORD_BYTES = 64 << 20  # a sane one is under 1 MB


class File(Value, frozen=True, kw_only=True):
    """A file of the folder: its path in it, its size and its hash."""

    path: str
    bytes: int
    sha256: str


class RewrittenModel(Value, frozen=True, kw_only=True):
    """A model for an NPU: its original, what was done to it, and what the original had beside its weights."""

    schema_version: int = SCHEMA_VERSION
    source: ModelSource  # of the original
    device: str
    npu: str
    log: tuple[RewriteRecord, ...]
    adapted: tuple[AdaptationRecord, ...] = ()  # where the user allowed to change its answers
    files: tuple[File, ...]  # the program first, then assets
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    calibration: str | None = None
    evaluation: str | None = None
    dynamic: tuple[DynamicDim, ...] = ()


def write_rewritten(
    folder: Path,
    original: Model,
    model: Model,
    *,
    device: str,
    npu: str,
    log: tuple[RewriteRecord, ...],
    adapted: tuple[AdaptationRecord, ...] = (),
) -> RewrittenModel:
    """Write a rewritten model into an empty folder. Raises `UnsupportedModel` where torch cannot store it."""
    try:
        with quiet():
            torch.export.save(capture(model), folder / PROGRAM)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = reason_of(error)
        raise UnsupportedModel(f"torch.export cannot store the rewritten '{original.name}': {reason}") from error
    paths = [PROGRAM]
    if model.assets:
        (folder / ASSETS).mkdir()
    for name, content in model.assets.items():
        (folder / ASSETS / name).write_bytes(content)
        paths.append(f"{ASSETS}/{name}")
    record = RewrittenModel(
        source=original.source,
        device=device,
        npu=npu,
        log=log,
        adapted=adapted,
        files=tuple(File(**record_file(folder, path)) for path in paths),
        preprocess=model.preprocess,
        postprocess=model.postprocess,
        calibration=model.calibration,
        evaluation=model.evaluation,
        dynamic=model.dynamic,
    )
    (folder / REWRITTEN).write_text(record.to_json(), encoding="utf-8")
    return record


def read_rewritten(folder: Path) -> tuple[RewrittenModel, Mapping[str, bytes]]:
    """The record, and the files that it vouches for but the program, by their plain names.

    Raises `InvalidInput` for a record that is not one, `BundleCorrupt` for files that are not those it vouches for.
    """
    record = _read_record(folder / REWRITTEN)
    if not record.files or record.files[0].path != PROGRAM:
        raise InvalidInput(f"'{folder / REWRITTEN}' does not name {PROGRAM} first: rewrite the model again")
    assets: dict[str, bytes] = {}
    for file in record.files:
        content = _checked(folder, file)
        if file.path != PROGRAM:
            assets[Path(file.path).name] = content
    return record, assets


def _read_record(path: Path) -> RewrittenModel:
    record = read_value(path, RewrittenModel, MAX_RECORD_BYTES)
    if record.schema_version != SCHEMA_VERSION:
        raise InvalidInput(
            f"'{path}' has schema version {record.schema_version}, this edgekit reads {SCHEMA_VERSION}: "
            "rewrite the model again"
        )
    return record


def _checked(folder: Path, file: File) -> bytes:
    path = folder / file.path
    if not stays_inside(file.path) or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleCorrupt(f"'{folder / REWRITTEN}' names the file '{file.path}', which is not a path in the folder")
    if not path.is_file():
        raise BundleCorrupt(f"'{path}' is missing: copy the whole folder again")
    if path.stat().st_size != file.bytes:
        raise BundleCorrupt(f"'{path}' has another size than {REWRITTEN} says: it was cut or replaced")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise BundleCorrupt(f"'{path}' was altered: its sha256 is not that in {REWRITTEN}")
    return content
