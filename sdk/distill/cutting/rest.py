"""The rest of a model, asked from embeddings: what stands behind a site, with prompts and no encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from edgekit.distill.cutting.call import Given
from edgekit.distill.cutting.site import Site
from edgekit.distill.cutting.splicing import splice
from edgekit.model import Model, name_outputs
from edgekit.types import TensorSpec


class Rest:
    """A copy of the model without its encoder, frozen; gradients flow through it to the embeddings.

    Inputs that a task's prompts fill (`prompt_inputs`) come from a prompt alone; every other input is the example's.
    """

    def __init__(self, model: Model, site: Site, prompt_inputs: Collection[str] = ()) -> None:
        self._given = Given({spec.name: spec.name for spec in site.outputs})
        self._given.tensors = {spec.name: torch.zeros(_sizes(spec)) for spec in site.outputs}
        self.module = splice(model, site, self._given).requires_grad_(False)
        self._example = {name: tensor for name, tensor in model.example.items() if name not in prompt_inputs}

    def __call__(self, embeddings: Mapping[str, Tensor], prompt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's outputs. A prompt of Q questions asks Q / N of each of N embeddings, in their order."""
        one = next(iter(embeddings.values()))
        times = max((len(tensor) for tensor in prompt.values()), default=len(one)) // len(one)
        self._given.tensors = {name: tensor.repeat_interleave(times, 0) for name, tensor in embeddings.items()}
        images = {
            name: tensor[:1].expand(times * len(one), *tensor.shape[1:]) for name, tensor in self._example.items()
        }
        inputs = {name: tensor.to(one.device) for name, tensor in (images | dict(prompt)).items()}
        return name_outputs(self.module(**inputs))


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(int(size) for size in spec.shape)
