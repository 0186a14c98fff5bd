"""Which tensor of a compressed folder is which of a model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

from edgekit.errors import InvalidInput
from edgekit.lossless_folder import LosslessFolder, Place, TensorRecord

SHOWN = 5  # faults in a message
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip


class Match(NamedTuple):
    """A tensor of the model and where it is stored."""

    names: list[str]  # several when it is tied
    place: Place


def match(model: nn.Module, folder: LosslessFolder) -> list[Match]:
    """All parameters and saved buffers of the model, each once. Raises `InvalidInput` when the two do not fit."""
    stored: dict[str, Place] = {}
    for place in folder.tensors:
        if place.tensor in stored:
            files = f"'{stored[place.tensor].file}' and '{place.file}'"
            raise InvalidInput(f"'{folder.path}': {files} both hold '{place.tensor}'; compress each model by itself")
        stored[place.tensor] = place
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, torch.Tensor)}
    names_of: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names_of.setdefault(id(tensor), []).append(name)
    groups = list(names_of.values())
    if faults := list(_faults(state, groups, stored, folder)):
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InvalidInput(f"'{folder.path}' does not fit the model: {', '.join(faults[:SHOWN])}{more}")
    if empty := [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in state]:
        raise InvalidInput(
            f"the buffer '{empty[0]}' has no values and no file holds them: build the model in without_weights(), "
            "not on the meta device"
        )
    return [Match(names, next(stored[name] for name in names if name in stored)) for names in groups]


def _faults(
    state: Mapping[str, torch.Tensor], groups: list[list[str]], stored: Mapping[str, Place], folder: LosslessFolder
) -> Iterator[str]:
    yield from (f"it lacks '{names[0]}'" for names in groups if not any(name in stored for name in names))
    yield from (f"the model has no '{name}'" for name in stored if name not in state)
    for names in groups:
        records = {name: folder.tensors[stored[name]] for name in names if name in stored}
        for name, record in records.items():
            if not _holds(state[name], record):
                found = f"{state[name].dtype}".removeprefix("torch.")
                yield f"'{name}' is {record.kind}, not {found}{list(state[name].shape)}"
        if len({record.content for record in records.values()}) > 1:
            tied = "' and '".join(records)
            yield f"the model ties '{tied}', whose stored weights differ"


def _holds(tensor: torch.Tensor, record: TensorRecord) -> bool:
    """Whether a stored tensor can take a tensor's place; a float of another width can."""
    dtype = DTYPES.get(record.dtype)
    return (
        dtype is not None
        and record.shape == tuple(tensor.shape)
        and (dtype == tensor.dtype or (dtype.is_floating_point and tensor.dtype.is_floating_point))
    )
