"""Folders that the dfloat11 package made, checked, and turned back into ordinary weights.

They hold no shapes and no hashes. The shapes come from the architecture that config.json names, built without weights;
that all bits are the source's cannot be proved, only that the streams are whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle import record_file
from edgekit.dfloat11 import CONFIG, MARK, DFloat11Config, Group, stored_groups
from edgekit.errors import CorruptWeights, InvalidInput, ToolchainMissing, reason_of
from edgekit.folder import building, check_free
from edgekit.lossless_folder import CODED_DTYPE, MANIFEST, SourceFile
from edgekit.tensorfile import TensorEntry, TensorFile, TensorWriter, header_room
from edgekit.types import Value

CONFIG_FILE = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FORMAT = {"format": "pt"}  # transformers reads no file without it
METADATA_BYTES = 64

Progress = Callable[[str], None]
Shapes = dict[str, tuple[int, ...]]


class StreamCheck(Value, frozen=True, kw_only=True):
    """What decoding a folder showed."""

    files: int
    streams: int
    tensors: int  # in the streams
    weights: int  # of these tensors
    raw_tensors: int  # beside the streams
    not_checked: str = "whether these are the source's bits: the dfloat11 package stores no hash of them"


@dataclass(frozen=True)
class DFloat11Folder:
    """A folder whose streams are all there; what is in them only decoding shows."""

    path: Path
    config: dict[str, Any]  # config.json
    files: tuple[TensorFile, ...]
    groups: dict[str, Group]  # by path

    @classmethod
    def open(cls, folder: str | Path) -> DFloat11Folder:
        """Read config.json and all headers. Raises `InvalidInput` for no such folder, `CorruptWeights` for damage."""
        path = Path(folder)
        config = _read_config(path)
        if config is None or CONFIG not in config:
            raise InvalidInput(f"'{path / CONFIG_FILE}' has no {CONFIG}, so no stream in '{path}' can be read")
        files = tuple(TensorFile.open(file) for file in sorted(path.glob("*.safetensors")))
        names = [entry.name for file in files for entry in file.tensors]
        groups = stored_groups(names, DFloat11Config.from_json(json.dumps(config[CONFIG])))
        if not groups:
            raise CorruptWeights(f"'{path}' holds no DFloat11 stream, though its {CONFIG_FILE} has a {CONFIG}")
        return cls(path, config, files, {group.path: group for group in groups})

    def contents(self, file: TensorFile) -> tuple[list[TensorEntry], list[Group]]:
        """The tensors of a file that are stored as they are, and the groups whose streams are in it."""
        parts = {key for group in self.groups.values() for key in group.keys.values()}
        paths = [entry.name.rpartition(".") for entry in file.tensors if entry.name in parts]
        plain = [entry for entry in file.tensors if entry.name not in parts]
        return plain, [self.groups[path] for path, _, part in paths if part == MARK]


def is_dfloat11(folder: Path) -> bool:
    """Whether config.json says that DFloat11 streams lie beside it, and no manifest of ours does."""
    return not (folder / MANIFEST).exists() and CONFIG in (_read_config(folder) or {})


def verify_dfloat11(folder: str | Path, *, progress: Progress = lambda step: None) -> StreamCheck:
    """Decode every stream of a folder that the dfloat11 package made. Needs neither torch nor transformers.

    Raises `CorruptWeights` that names the stream which is not whole; one whose bits were exchanged may well be.
    """
    opened = DFloat11Folder.open(folder)
    raw = weights = 0
    for file in opened.files:
        progress(f"verify {file.path.name}")
        plain, groups = opened.contents(file)
        raw += len(plain)
        weights += sum(group.check(_parts(file, group)) for group in groups)
    return StreamCheck(
        files=len(opened.files),
        streams=len(opened.groups),
        tensors=sum(len(group.tensors) for group in opened.groups.values()),
        weights=weights,
        raw_tensors=raw,
    )


def decompress_dfloat11(
    folder: str | Path, out: str | Path, *, progress: Progress = lambda step: None
) -> tuple[SourceFile, ...]:
    """Write the weights of a folder that the dfloat11 package made into the folder `out`; return its files.

    Raises `InvalidInput` where transformers does not know the architecture, `CorruptWeights` for damaged streams.
    """
    target = Path(os.path.abspath(out))
    check_free(target, False, MANIFEST)
    opened = DFloat11Folder.open(folder)
    source, shapes = opened.path, model_shapes(opened)
    if missing := [name for group in opened.groups.values() for name in group.tensors if name not in shapes]:
        raise InvalidInput(f"'{source / CONFIG_FILE}' names a model without '{missing[0]}', which '{source}' holds")
    with building(target, 2 * sum(file.path.stat().st_size for file in opened.files)) as partial:
        where: dict[str, str] = {}
        for file, name in zip(opened.files, _file_names(len(opened.files)), strict=True):
            progress(f"decompress {file.path.name}")
            where |= dict.fromkeys(_write(opened, file, partial / name, shapes), name)
        for path in source.iterdir():
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copyfile(path, partial / path.name)
        config = {key: value for key, value in opened.config.items() if key != CONFIG}
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if len(opened.files) > 1:
            (partial / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=2), encoding="utf-8")
    return tuple(SourceFile(**record_file(target, path.name)) for path in sorted(target.iterdir()))


def model_shapes(folder: DFloat11Folder) -> Shapes:
    """The shapes of all tensors of the architecture that config.json names; no code of the folder runs."""
    if "model_type" not in folder.config:
        raise InvalidInput(
            f"'{folder.path / CONFIG_FILE}' names no architecture, and DFloat11 files hold no shapes: "
            "add to it what the model's own config.json has"
        )
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise ToolchainMissing("DFloat11 folders need transformers: pip install 'edgekit[huggingface]'") from error
    try:
        config = AutoConfig.from_pretrained(folder.path, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises a dozen types for a config that it does not know
        raise InvalidInput(f"transformers cannot build the model of '{folder.path}': {reason_of(error)}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _file_names(count: int) -> list[str]:
    """As transformers has them: it reads no index where a file is called `model.safetensors`."""
    return [WEIGHTS] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]


def _write(folder: DFloat11Folder, file: TensorFile, target: Path, shapes: Shapes) -> list[str]:
    """Write one file with every stream in it decoded, and return the names of its tensors."""
    plain, groups = folder.contents(file)
    dimensions = {entry.name: len(entry.shape) for entry in plain}
    dimensions |= {name: len(shapes[name]) for group in groups for name in group.tensors}
    room = METADATA_BYTES + header_room(dimensions.items())
    with TensorWriter(target, room) as writer:
        for entry in plain:
            writer.write(entry.name, entry.dtype, entry.shape, file.read(entry))
        for group in groups:
            for name, bits in group.decode(_parts(file, group), shapes).items():
                writer.write(name, CODED_DTYPE, bits.shape, bits)
        writer.finish(FORMAT)
    return list(dimensions)


def _parts(file: TensorFile, group: Group) -> dict[str, Any]:
    entries = {entry.name: entry for entry in file.tensors}
    if lost := [key for key in group.keys.values() if key not in entries]:
        raise CorruptWeights(f"'{file.path}' has a part of '{group.path}' and no '{lost[0]}'")
    return {part: file.array(entries[key]) for part, key in group.keys.items()}


def _read_config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None
