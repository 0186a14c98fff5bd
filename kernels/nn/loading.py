"""Puts the weights of a folder that `edgekit compress` wrote into a model, coded or decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from edgekit.codec import NoGain, encode
from edgekit.errors import InvalidInput, unknown_name
from edgekit.kernels._launch import check_device
from edgekit.kernels.nn.matching import DTYPES, match
from edgekit.kernels.nn.modules import CodedWeight, FastWeight, LosslessEmbedding, LosslessLinear, SmallWeight
from edgekit.lossless_folder import RAW, LosslessFolder, Place

Resident = Literal["fast", "small", "bf16"]
KINDS: dict[str, type[CodedWeight]] = {"fast": FastWeight, "small": SmallWeight}

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@contextmanager
def without_weights() -> Iterator[None]:
    """Models that are built inside have parameters that take no memory, on torch's meta device, until they are loaded.

    Buffers keep their values, which under `torch.device("meta")` they do not: those that are in no file, such as a
    rotary embedding's frequencies, could not be restored.
    """

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:  # a tied one must stay the same object
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(without_memory)
    try:
        yield
    finally:
        hook.remove()


def load_lossless(
    model: AnyModule, folder: str | Path, resident: Resident = "fast", device: torch.device | str | None = None
) -> AnyModule:
    """Load all weights of a compressed folder into `model`, in place, and return it on `device`.

    `resident` says how the weights of `nn.Linear` and `nn.Embedding` stay in memory: `fast` as df12, which products
    read in place; `small` as df11x, decoded for every product; `bf16` decoded once. With `small` and `bf16` outputs are
    those of the dense model to the last bit; with `fast` sums have another order. What is raw in the folder or does not
    gain is dense, as are all other layers and subclasses of the two. Tied weights are in memory once. Tensors take the
    folder's dtype.

    The model may have weights or none: build it in `without_weights()`. `device` is the CUDA device where there is one,
    else the CPU. Raises `InvalidInput` with the names when folder and model do not fit, and then changes nothing, and
    `CorruptWeights` for weights that are not the source's, which leaves the model half loaded.
    """
    if resident not in get_args(Resident):
        raise unknown_name("resident form", resident, get_args(Resident))
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = KINDS.get(resident)
    if kind:
        try:
            check_device(f"resident='{resident}'", target)
        except InvalidInput as error:
            raise InvalidInput(f"{error}; resident='bf16' works on any device") from error
    opened = LosslessFolder.open(folder)
    coded: dict[Place, CodedWeight | None] = {}  # by where it is stored: tied weights are made once
    for names, place in match(model, opened):
        source = opened.tensors[place].same_as or place
        if kind and all(_is_swappable(model, name) for name in names):
            if source not in coded:
                coded[source] = _code(opened, source, kind, target)
            if weight := coded[source]:
                for name in names:
                    swap(model, name.rpartition(".")[0], weight)
                continue
        _assign(model, names, _dense(opened, place, target))
    return model.to(target)


def swap(model: nn.Module, path: str, coded: CodedWeight) -> None:
    """Put a coded layer in the place of the linear or embedding layer at this path, with its bias."""
    layer = model.get_submodule(path)
    if isinstance(layer, nn.Linear):
        model.set_submodule(path, LosslessLinear(coded, layer.bias).train(layer.training))
    elif isinstance(layer, nn.Embedding):  # else it is done: two paths can lead to one layer
        model.set_submodule(path, LosslessEmbedding(coded, layer.padding_idx).train(layer.training))


def _is_swappable(model: nn.Module, name: str) -> bool:
    """Whether this is the weight of a layer that does nothing but multiply or look up."""
    path, _, attribute = name.rpartition(".")
    layer = model.get_submodule(path)
    plain = type(layer) is nn.Linear or (type(layer) is nn.Embedding and layer.max_norm is None)
    return plain and path != "" and attribute == "weight"


def _code(opened: LosslessFolder, place: Place, kind: type[CodedWeight], device: torch.device) -> CodedWeight | None:
    """The stored weight in the form of `kind`; None for one that stays dense."""
    record = opened.tensors[place]
    if record.codec == RAW or len(record.shape) != 2:
        return None
    bits = opened.raw(place).view(np.uint16).reshape(record.shape)  # decoded even if not needed: that proves the parts
    try:
        parts = opened.encoded(place).parts if record.codec == kind.codec else encode(bits, kind.codec).parts
    except NoGain:
        return None
    return kind.upload(parts, record.shape, device)


def _dense(opened: LosslessFolder, place: Place, device: torch.device) -> torch.Tensor:
    record = opened.tensors[place]
    data = torch.tensor(opened.raw(place), device=device)
    return data.view(DTYPES[record.dtype]).reshape(record.shape)


def _assign(model: nn.Module, names: list[str], value: torch.Tensor) -> None:
    """Give the model one tensor under all these names, a parameter where it was one."""
    for path, _, attribute in (name.rpartition(".") for name in names):
        module = model.get_submodule(path)
        old = getattr(module, attribute)
        if isinstance(old, nn.Parameter) and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=old.requires_grad)
        setattr(module, attribute, value)
