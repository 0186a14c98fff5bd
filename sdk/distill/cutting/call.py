"""One call of a module: what it was given by argument name, and the tensors in what it returned by output name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgekit.errors import UnsupportedModel
from edgekit.model import name_outputs

Constant = bool | int | float | str | None


def positions(module: nn.Module) -> tuple[str, ...]:
    """The names of the arguments that `forward` takes by position."""
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def by_name(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call by name; what a `*` takes is `*0`, `*1` and so on."""
    unnamed = {f"*{index}": value for index, value in enumerate(args[len(names) :])}
    return {**dict(zip(names, args, strict=False)), **unnamed, **kwargs}


def why_not_again(arguments: Mapping[str, Any]) -> str | None:
    """Why the call cannot be made again from named tensors and plain constants, or None when it can."""
    for name, value in arguments.items():
        if name.startswith("*"):
            return "it takes its arguments as *args, which have no names: name them in forward"
        if not isinstance(value, Tensor | Constant):
            return f"its argument '{name}' is a {type(value).__name__}; a site takes tensors and constants"
    return None if any(isinstance(value, Tensor) for value in arguments.values()) else "it takes no tensor"


def without_tensors(result: Any) -> tuple[Any, dict[str, Tensor]]:
    """What a module returned with names in the place of its tensors, and the tensors under these names.

    Names are those of `model.name_outputs`. Raises `UnsupportedModel` for what has no such names.
    """
    named = name_outputs(result)
    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    if [id(tensor) for tensor in tensors] != [id(tensor) for tensor in named.values()]:
        raise UnsupportedModel(
            f"the module returns a {type(result).__name__}, which torch cannot take apart: return tensors, or tuples, "
            "lists or dicts of them"
        )
    names = iter(named)
    return pytree.tree_map(lambda leaf: next(names) if isinstance(leaf, Tensor) else leaf, result), named


def with_tensors(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The structure with the tensors in the place of their names."""
    return pytree.tree_map(lambda leaf: tensors[leaf] if isinstance(leaf, str) else leaf, structure)


class Given(nn.Module):
    """Stands where an encoder stood: returns the tensors of this call in the structure that its outputs had."""

    def __init__(self, structure: Any) -> None:
        super().__init__()
        self.structure = structure
        self.names = [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, str)]
        self.tensors: dict[str, Tensor] = {}

    def forward(self, *_: Any, **__: Any) -> Any:
        """Whatever the arguments are."""
        return with_tensors(self.structure, self.tensors)
