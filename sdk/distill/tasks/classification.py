"""Classifiers: does the student name the same class as the teacher, and the right one?"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.distill.task import Outputs, Task
from edgekit.errors import InvalidInput
from edgekit.model import Model
from edgekit.processing import ClassLabels, asset_text


class Classification(Task):
    """Logits `[N, C]`; decisions and the truth are class numbers `[N]`."""

    name = "classification"
    metric = "top-1"

    def __init__(self, output: str) -> None:
        self.output = output

    def answer(self, outputs: Outputs) -> Tensor:
        """The logits."""
        return outputs[self.output]

    def decide(self, answer: Tensor) -> Tensor:
        """The likeliest class."""
        return answer.argmax(-1)

    def score(self, answer: Tensor, reference: Tensor) -> Tensor:
        """1 where the class is the same, else 0."""
        return (self.decide(answer) == reference).float()

    def loss(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Divergence of the student's distribution from the teacher's, temperature 1 (Hinton et al., 1503.02531)."""
        ours, theirs = (functional.log_softmax(self.answer(side), -1) for side in (outputs, teacher))
        return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    def read_truth(self, images: Mapping[str, Path], truth: Path, model: Model) -> dict[str, Tensor]:
        """`truth` is a CSV file with rows `image file name,class`; a class is its number or its label."""
        labels = _labels(model)
        classes = int(next(spec.shape[-1] for spec in model.outputs if spec.name == self.output))
        try:
            with truth.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file) if row]
        except (OSError, UnicodeError, csv.Error) as error:
            raise InvalidInput(f"cannot read '{truth}' as rows of FILE,CLASS: {error}") from error
        found: dict[str, Tensor] = {}
        by_name = {path.name: key for key, path in images.items()}
        for number, row in enumerate(rows, 1):
            if len(row) != 2:
                raise InvalidInput(f"line {number} of '{truth}' has {len(row)} columns: write FILE,CLASS")
            key, each = by_name.get(row[0].strip()), row[1].strip()
            index = int(each) if each.isascii() and each.isdecimal() else labels.get(each, classes)
            if index >= classes:
                raise InvalidInput(f"line {number} of '{truth}': '{each}' is none of the model's {classes} classes")
            if key is not None:
                found[key] = torch.tensor([index])
        return found


def accepts(model: Model) -> bool:
    """Whether one output `[N, C]` is known to hold logits, or is the only one of a module without further names."""
    return _output(model) is not None


def open_task(model: Model) -> Task:
    """The task on the model's logits."""
    return Classification(_output(model) or "output")


def _output(model: Model) -> str | None:
    if model.logits:
        return model.logits
    flat = [spec.name for spec in model.outputs if len(spec.shape) == 2 and spec.dtype.startswith("float")]
    return flat[0] if len(model.outputs) == 1 and flat in (["output"], ["logits"]) else None


def _labels(model: Model) -> dict[str, int]:
    if not isinstance(model.postprocess, ClassLabels):
        return {}
    lines = asset_text(model.assets, model.postprocess.labels).splitlines()
    return {label: index for index, label in reversed(list(enumerate(lines)))}
