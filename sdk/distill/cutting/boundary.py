"""A site's module between plain tensors, and the tensors that reach it in a call of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.distill.cutting.call import by_name, positions
from edgekit.distill.cutting.site import Site
from edgekit.errors import InvalidInput
from edgekit.model import Model, name_outputs


class Encoder(nn.Module):
    """A site's module with plain tensors on both sides.

    Takes the site's inputs by name, batch N. Returns the outputs that the rest of the model reads, by name, with the
    shapes of `site.outputs` at batch N. The module stays what it was: teacher and encoder share their weights.
    """

    def __init__(self, module: nn.Module, site: Site) -> None:
        super().__init__()
        self.module = module
        self.constants = dict(site.constants)
        self.names = tuple(spec.name for spec in site.outputs)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Call the module."""
        named = name_outputs(self.module(**inputs, **self.constants))
        return {name: named[name] for name in self.names}


class _Reached(Exception):
    """Ends a call of the model where its site begins."""


def site_feeds(model: Model, site: Site, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that reach the site, by argument name, when the whole model is called with `example`, batch N.

    The call ends there. Raises `InvalidInput` when the site is not reached.
    """
    module = model.module.get_submodule(site.path)
    names, found = positions(module), dict[str, Tensor]()

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = by_name(names, args, kwargs)
        found.update({spec.name: arguments[spec.name] for spec in site.inputs})
        raise _Reached

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model.module(**example)
    except _Reached:
        return found
    finally:
        handle.remove()
    raise InvalidInput(f"this call of '{model.name}' does not reach its site '{site.path}': give all inputs")


def check_student(student: nn.Module, site: Site, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A student's answers, with the site's names, shapes and dtypes. Raises `InvalidInput` where they have others."""
    was_training, batch = student.training, next(iter(feeds.values())).shape[0]
    try:
        with torch.no_grad():
            result = student.eval()(**feeds)
    except Exception as error:  # a student may be user code, which may raise anything
        given = ", ".join(str(spec) for spec in site.inputs)
        raise InvalidInput(
            f"the student fails at batch {batch} of what the site takes by name ({given}): "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        student.train(was_training)
    answers = outputs_of(result, site)
    if set(answers) != {spec.name for spec in site.outputs}:
        wanted = ", ".join(f"'{spec}'" for spec in site.outputs)
        raise InvalidInput(f"the student gives {', '.join(answers) or 'nothing'}; what the rest reads is {wanted}")
    for spec in site.outputs:
        answer = answers[spec.name]
        shape, dtype = tuple(answer.shape), str(answer.dtype).removeprefix("torch.")
        if shape != (batch, *spec.shape[1:]) or dtype != spec.dtype:
            shown = f"{dtype}[{', '.join(map(str, shape))}]"
            raise InvalidInput(
                f"the student's output '{spec.name}' is {shown} at batch {batch}; the site's is '{spec}'"
            )
    return answers


def outputs_of(result: object, site: Site) -> dict[str, Tensor]:
    """What a student returned, by output name: a bare tensor answers for the site's only output."""
    if isinstance(result, Tensor):
        return {site.outputs[0].name: result} if len(site.outputs) == 1 else {"output": result}
    if not isinstance(result, Mapping) or not all(isinstance(answer, Tensor) for answer in result.values()):
        raise InvalidInput(f"the student returns a {type(result).__name__}: let it return a dict of tensors by name")
    return dict(result)
