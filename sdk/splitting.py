"""Cut a model into two graphs behind one of its modules: the encoder, and the rest from the encoder's outputs on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgekit.distill.cutting.call import Given, with_tensors, without_tensors
from edgekit.errors import UnsupportedModel
from edgekit.model import Loaded, LoadOptions, Model, make_model, name_outputs, with_names
from edgekit.parts import ENCODER, REST
from edgekit.types import ModelSource


def split(model: Model, path: str) -> tuple[Model, Model]:
    """The module at `path` as a model of its own, and the model that takes its outputs in its place, by their names.

    The encoder keeps the preprocessing, the rest the postprocessing. Inputs of the model that only the encoder reads
    are none of the rest's. Raises `UnsupportedModel` where the module takes something else than the model's inputs, or
    is called more than once.
    """
    call, result = _watch(model, path)
    taken = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, str)]
    structure, _ = without_tensors(result)
    outputs = _named(result)
    fed = {name: tensor for name, tensor in model.example.items() if name not in taken}
    encoder = Loaded(
        module=with_names(_Encoder, tuple(taken))(model.module.get_submodule(path), call),
        example={name: model.example[name] for name in taken},
        preprocess=model.preprocess,
        calibration=model.calibration,
        evaluation=model.evaluation,
        assets=model.assets,
    )
    given = Given(structure)
    whole = copy.deepcopy(model.module, {id(model.module.get_submodule(path)): given})  # the encoder is not copied
    example = {**outputs, **fed}
    ignored = {name: model.example[name] for name in taken}
    rest = Loaded(
        module=with_names(_Rest, tuple(example))(whole, given, ignored),
        example=example,
        postprocess=model.postprocess,
        assets=model.assets,
    )
    return _part(model, ENCODER, encoder), _part(model, REST, rest)


def _part(model: Model, part: str, loaded: Loaded) -> Model:
    source = ModelSource(kind=model.source.kind, ref=model.source.ref, part=part)
    loaded.module.eval()
    return make_model(source, loaded, LoadOptions())


def _watch(model: Model, path: str) -> tuple[Any, Any]:
    """The arguments of the module, with names of the model's inputs in the place of these, and what it returned."""
    calls: list[tuple[Any, Any]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        calls.append(((list(inputs), named), result))

    hook = model.module.get_submodule(path).register_forward_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            model.module(**model.example)
    finally:
        hook.remove()
    if len(calls) != 1:
        raise UnsupportedModel(f"'{path}' is called {len(calls)} times in '{model.name}': a cut needs a single road")
    [(given, result)] = calls
    names = {id(tensor): name for name, tensor in model.example.items()}
    tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    if not tensors or any(id(tensor) not in names for tensor in tensors):
        raise UnsupportedModel(f"'{path}' takes something else than inputs of '{model.name}': cut elsewhere")
    return pytree.tree_map(lambda leaf: names.get(id(leaf), leaf), given), result


def _named(result: object) -> dict[str, Tensor]:
    """What a module returned, under names that can be arguments: `levels_0`."""
    return {_argument(name): tensor for name, tensor in name_outputs(result).items()}


def _argument(name: str) -> str:
    return name.replace(".", "_")


class _Encoder(nn.Module):
    """A module with named tensors as inputs and outputs."""

    def __init__(self, module: nn.Module, call: Any) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        unnamed, named = with_tensors(self.call, inputs)
        return _named(self.module(*unnamed, **named))


class _Rest(nn.Module):
    """A model whose encoder is a `Given`: it takes the encoder's outputs and the inputs that the encoder left."""

    def __init__(self, whole: nn.Module, given: Given, ignored: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.whole, self.given = whole, given
        self.ignored = dict(ignored)

    def forward(self, **inputs: Tensor) -> Any:
        self.given.tensors.update({name: inputs.pop(_argument(name)) for name in self.given.names})
        try:
            return self.whole(**self.ignored, **inputs)
        finally:
            self.given.tensors.clear()
