"""Any model: its outputs are compared as vectors, and there are no prompts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.distill.task import Outputs, Task
from edgekit.model import Model


class Embedding(Task):
    """All floating outputs of an image, end to end, as one vector."""

    name = "embedding"
    metric = "cosine of the outputs"

    def answer(self, outputs: Outputs) -> Tensor:
        """The vector."""
        return torch.cat([tensor.flatten(1) for tensor in outputs.values() if tensor.is_floating_point()], 1)

    def decide(self, answer: Tensor) -> Tensor:
        """The vector itself."""
        return answer

    def score(self, answer: Tensor, reference: Tensor) -> Tensor:
        """Its cosine with the other."""
        return functional.cosine_similarity(answer, reference)

    def loss(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """One less the mean cosine."""
        return 1 - self.score(self.answer(outputs), self.answer(teacher)).mean()


def accepts(model: Model) -> bool:
    """Every model has outputs."""
    return True


def open_task(model: Model) -> Task:
    """The same for all models."""
    return Embedding()
