"""Put a student in the place of a site, in a copy of the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from edgekit.distill.cutting.boundary import check_student, outputs_of, site_feeds
from edgekit.distill.cutting.call import by_name, positions, with_tensors, without_tensors
from edgekit.distill.cutting.site import Site
from edgekit.errors import InvalidInput
from edgekit.model import Model, weights_sha256


class Adapter(nn.Module):
    """A student that is called like the site's module, and returns what that returned: ModelOutput, tuple, tensor.

    Outputs that the rest of the model never reads are NaN: should it read one after all, nobody takes it for an answer.
    """

    def __init__(self, student: nn.Module, site: Site, teacher: nn.Module, result: Any) -> None:
        super().__init__()
        for name, value in vars(teacher).items():  # what the rest may ask the module for: config, patch_size
            if not name.startswith("_") and not hasattr(self, name):
                setattr(self, name, value)
        self.student = student
        self._site = site
        self._positions = positions(teacher)
        self._structure, tensors = without_tensors(result)
        read = {spec.name for spec in site.outputs}
        self._unread = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in tensors.items() if name not in read}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the student with the tensors among the arguments."""
        arguments = by_name(self._positions, args, kwargs)
        inputs = {spec.name: arguments[spec.name] for spec in self._site.inputs}
        answers = outputs_of(self.student(**inputs), self._site)
        first = next(iter(answers.values()))
        for name, (shape, dtype) in self._unread.items():
            answers[name] = torch.full((first.shape[0], *shape), torch.nan, device=first.device).to(dtype)
        return with_tensors(self._structure, answers)


def splice(model: Model, site: Site, student: nn.Module) -> nn.Module:
    """A deep copy of `model.module` in evaluation mode, with `student` in the place of the site.

    The student takes the site's inputs by name and returns its outputs by name, or a bare tensor where there is one.
    It is not copied: what it learns later is seen here too. Raises `InvalidInput` when its answers have other shapes
    or dtypes than the site's, or when the rest needs more of the site's module than its outputs.
    """
    teacher = model.module.get_submodule(site.path)
    feeds = site_feeds(model, site, model.example)
    check_student(student, site, feeds)
    with torch.no_grad():
        adapter = Adapter(student, site, teacher, teacher(**feeds, **site.constants))
        spliced = copy.deepcopy(model.module, {id(teacher): adapter}).eval()  # the site itself is not copied
        try:
            spliced(**model.example)
        except AttributeError as error:
            raise InvalidInput(
                f"the rest of '{model.name}' needs more than the outputs of its site '{site.path}': {error}"
            ) from error
    return spliced


def outside_sha256(module: nn.Module, path: str) -> str:
    """Hash of names, dtypes, shapes and bytes of every parameter and buffer outside the module at `path`."""
    return weights_sha256(module, outside=path)
