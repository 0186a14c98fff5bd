"""Folders that the dfloat11 package made, turned back into ordinary weights.

They hold no shapes and no hashes. The shapes come from the architecture that config.json names, built without weights;
that all bits are the source's cannot be proved, only that the streams are whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.bundle import record_file
from edgekit.dfloat11 import CONFIG, MARK, DFloat11Config, Group, stored_groups
from edgekit.errors import CorruptWeights, InvalidInput, ToolchainMissing, reason_of
from edgekit.folder import building, check_free
from edgekit.lossless_folder import CODED_DTYPE, MANIFEST, SourceFile
from edgekit.tensorfile import TensorEntry, TensorFile, TensorWriter, header_room

CONFIG_FILE = "config.json"
INDEX = "model.safetensors.index.json"
FORMAT = {"format": "pt"}  # transformers reads no file without it
METADATA_BYTES = 64

Shapes = dict[str, tuple[int, ...]]


def is_dfloat11(folder: Path) -> bool:
    """Whether config.json says that DFloat11 streams lie beside it, and no manifest of ours does."""
    return not (folder / MANIFEST).exists() and CONFIG in (_read_config(folder) or {})


def decompress_dfloat11(
    folder: str | Path, out: str | Path, *, progress: Callable[[str], None] = lambda step: None
) -> tuple[SourceFile, ...]:
    """Write the weights of a folder that the dfloat11 package made into the folder `out`; return its files.

    Raises `InvalidInput` where transformers does not know the architecture, `CorruptWeights` for damaged streams.
    """
    source, target = Path(folder), Path(os.path.abspath(out))
    check_free(target, False, MANIFEST)
    config = _read_config(source)
    if config is None or CONFIG not in config:
        raise InvalidInput(f"'{source / CONFIG_FILE}' has no {CONFIG}, so no stream in '{source}' can be read")
    files = [TensorFile.open(path) for path in sorted(source.glob("*.safetensors"))]
    names = [entry.name for file in files for entry in file.tensors]
    found = stored_groups(names, DFloat11Config.from_json(json.dumps(config.pop(CONFIG))))
    shapes, groups = model_shapes(source), {group.path: group for group in found}
    if missing := [name for group in found for name in group.tensors if name not in shapes]:
        raise InvalidInput(f"'{source / CONFIG_FILE}' names a model without '{missing[0]}', which '{source}' holds")
    with building(target, 2 * sum(file.path.stat().st_size for file in files)) as partial:
        where: dict[str, str] = {}
        for file in files:
            progress(f"decompress {file.path.name}")
            where |= dict.fromkeys(_write(file, partial / file.path.name, groups, shapes), file.path.name)
        for path in source.iterdir():
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copyfile(path, partial / path.name)
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if len(files) > 1:
            (partial / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=2), encoding="utf-8")
    return tuple(SourceFile(**record_file(target, path.name)) for path in sorted(target.iterdir()))


def model_shapes(folder: Path) -> Shapes:
    """The shapes of all tensors of the architecture that config.json names; no code of the folder runs."""
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise ToolchainMissing("DFloat11 folders need transformers: pip install 'edgekit[huggingface]'") from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises a dozen types for a config that it does not know
        raise InvalidInput(f"transformers cannot build the model of '{folder}': {reason_of(error)}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _write(file: TensorFile, target: Path, groups: dict[str, Group], shapes: Shapes) -> list[str]:
    """Write one file with every stream in it decoded, and return the names of its tensors."""
    entries = {entry.name: entry for entry in file.tensors}
    parts = {key for group in groups.values() for key in group.keys.values()}
    own = [groups[name.rpartition(".")[0]] for name in entries if name in parts and name.rpartition(".")[2] == MARK]
    plain = [entry for entry in file.tensors if entry.name not in parts]
    dimensions = {entry.name: len(entry.shape) for entry in plain}
    dimensions |= {name: len(shapes[name]) for group in own for name in group.tensors}
    room = METADATA_BYTES + header_room(dimensions.items())
    with TensorWriter(target, room) as writer:
        for entry in plain:
            writer.write(entry.name, entry.dtype, entry.shape, file.read(entry))
        for group in own:
            for name, bits in group.decode(_parts(file, entries, group), shapes).items():
                writer.write(name, CODED_DTYPE, bits.shape, bits)
        writer.finish(FORMAT)
    return list(dimensions)


def _parts(file: TensorFile, entries: dict[str, TensorEntry], group: Group) -> dict[str, Any]:
    if lost := [key for key in group.keys.values() if key not in entries]:
        raise CorruptWeights(f"'{file.path}' has a part of '{group.path}' and no '{lost[0]}'")
    return {part: file.array(entries[key]) for part, key in group.keys.items()}


def _read_config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None
