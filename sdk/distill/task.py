"""What a model is for: how its rest is asked, what it answers, and how two answers compare.

A task is a module in `sdk/distill/tasks/`, named by its file. It offers `accepts(model)` and `open_task(model)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from edgekit import registry
from edgekit.errors import InvalidInput
from edgekit.model import Model

TASKS = "edgekit.distill.tasks"
FALLBACK = "embedding"
Prompt = dict[str, Tensor]
Outputs = Mapping[str, Tensor]


class Task(ABC):
    """How answers of one kind of model are asked for and compared.

    A batch of Q questions may ask several things of one image; where the image is the question, Q is the batch.
    """

    name: str
    metric: str  # what `score` gives, in words
    kinds: tuple[str, ...] = ("images",)  # of prompts, compared apart
    prompt_inputs: frozenset[str] = frozenset()  # inputs of the model that prompts fill

    def prompt(self, kind: str, objects: Tensor, generator: np.random.Generator) -> Prompt:
        """The inputs beside the image that ask for `objects`, decisions or truth of Q questions."""
        return {}

    def places(self, count: int, valid: Tensor | None, generator: np.random.Generator) -> Prompt:
        """`count` questions asked without knowledge of the image; the teacher's answers are objects to ask for.

        `valid`, bool `[count, H, W]`, says what of each image is no padding.
        """
        return {}

    def harder(self, prompt: Prompt, student: Tensor, teacher: Tensor, generator: np.random.Generator) -> Prompt:
        """The prompt with what tells a student where it decided otherwise than the teacher, if a prompt can."""
        return prompt

    @abstractmethod
    def answer(self, outputs: Outputs) -> Tensor:
        """The part of the model's outputs that is compared, as numbers with a gradient."""

    @abstractmethod
    def decide(self, answer: Tensor) -> Tensor:
        """What a user would take from an answer: masks, classes, or the numbers themselves."""

    @abstractmethod
    def score(self, answer: Tensor, reference: Tensor) -> Tensor:
        """`[Q]`: how well each answer meets a decision or the truth; 1 is as well as can be."""

    @abstractmethod
    def loss(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """How far a student's outputs are from what the teacher decided, for the refinement."""

    def read_truth(self, images: Mapping[str, Path], truth: Path, model: Model) -> dict[str, Tensor]:
        """What is true of each image, by its key. Raises `InvalidInput` where nothing can be."""
        raise InvalidInput(f"no ground truth is known for the task '{self.name}': leave out --truth")


def open_task(model: Model, name: str | None = None) -> Task:
    """The task of that name, or the one that takes the model. Raises `UnknownName`, or `InvalidInput` if none fits."""
    if name is not None:
        module = registry.load(TASKS, name)
        if not module.accepts(model):
            raise InvalidInput(f"'{model.name}' is no model for the task '{name}': leave out --task")
    else:
        special = (registry.load(TASKS, found) for found in registry.names(TASKS) if found != FALLBACK)
        module = next((each for each in special if each.accepts(model)), registry.load(TASKS, FALLBACK))
    task: Task = module.open_task(model)
    return task
