"""Segment Anything: points and boxes in, masks out.

Points and boxes are drawn from masks: of the ground truth, or where there is none of what the teacher sees at random
places. A model answers as a session does: with the mask that it gives the highest score.
Source: EdgeSAM (arXiv 2312.06660, stage 2) for the losses and for points where student and teacher disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.distill.task import Outputs, Prompt, Task
from edgekit.errors import InvalidInput
from edgekit.model import Model
from edgekit.processing import Array, ImagePreprocess, open_image
from edgekit.segmentation import HERE, LOWER_RIGHT, NOT_HERE, UNUSED, UPPER_LEFT, Segmentation

NOTHING = 255  # in a label map: belongs to no object and is not background either
LEAST_PIXELS = 16  # of an object in the model's input; smaller ones are no question
BCE_WEIGHT = DICE_WEIGHT = 5.0
LAYOUT = "give a folder with a PNG of each image's name and size, where the pixels of object k have the value k"


class SegmentAnything(Task):
    """A question is one object of one image, Q of them in a batch.

    Answers are mask logits `[Q, h, w]`; decisions and the truth are masks, bool `[Q, H, W]`.
    """

    name = "segment_anything"
    metric = "mask IoU"
    kinds = ("points", "boxes")

    def __init__(self, segmentation: Segmentation, height: int, width: int) -> None:
        self._names = segmentation
        self._height, self._width = height, width
        self.prompt_inputs = frozenset({segmentation.points, segmentation.labels})

    def prompt(self, kind: str, objects: Tensor, generator: np.random.Generator) -> Prompt:
        """A point on each object, or the box around it, from masks `[Q, H, W]` of any resolution."""
        if kind == "boxes":
            return self._marked(self._corners(objects), (UPPER_LEFT, LOWER_RIGHT))
        return self._marked(self._point(self._pick(objects, generator), objects.shape[-2:])[:, None], (HERE,))

    def places(self, count: int, valid: Tensor | None, generator: np.random.Generator) -> Prompt:
        """A point anywhere but on padding."""
        area = torch.ones(count, self._height, self._width, dtype=torch.bool) if valid is None else valid
        return self.prompt("points", area, generator)

    def harder(self, prompt: Prompt, student: Tensor, teacher: Tensor, generator: np.random.Generator) -> Prompt:
        """One more point for each object, where the masks differ: on it if the teacher says so, else off it."""
        wrong = student != teacher
        flat = self._pick(wrong, generator)
        on = teacher.flatten(1).gather(1, flat[:, None])[:, 0]
        label = torch.where(on, HERE, NOT_HERE).masked_fill(~wrong.flatten(1).any(1), UNUSED)
        points, labels = prompt[self._names.points].clone(), prompt[self._names.labels].clone()
        free = int((labels != UNUSED).sum(1).max())  # the first place that no question uses
        if free < self._names.places:
            points[:, free] = self._point(flat, teacher.shape[-2:]).to(points)
            labels[:, free] = label.to(labels)
        return {self._names.points: points, self._names.labels: labels}

    def answer(self, outputs: Outputs) -> Tensor:
        """The candidate that the model itself scores highest."""
        return self._chosen(outputs, outputs)

    def decide(self, answer: Tensor) -> Tensor:
        """Pixels above 0 are the object."""
        return answer > 0

    def score(self, answer: Tensor, reference: Tensor) -> Tensor:
        """The intersection over the union, at the resolution of the reference; two empty masks are equal."""
        if answer.shape[-2:] != reference.shape[-2:]:
            size = (reference.shape[-2], reference.shape[-1])
            answer = functional.interpolate(answer[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        ours = self.decide(answer)
        union, both = ((each).sum((-2, -1)) for each in (ours | reference, ours & reference))
        return torch.where(union > 0, both / union.clamp(min=1), 1.0)

    def loss(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """5 BCE + 5 Dice against the teacher's binarised mask, of its candidates the one that it scores highest."""
        wanted = self.decide(self.answer(teacher)).float()
        logits = self._chosen(outputs, teacher)
        entropy = functional.binary_cross_entropy_with_logits(logits, wanted)
        probability = logits.sigmoid()
        overlap = (probability * wanted).sum((-2, -1))
        dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + wanted.sum((-2, -1)) + 1)
        return BCE_WEIGHT * entropy + DICE_WEIGHT * dice.mean()

    def read_truth(self, images: Mapping[str, Path], truth: Path, model: Model) -> dict[str, Tensor]:
        """Label maps as `LAYOUT` says, through the model's own resize and crop. Images without a map are left out."""
        if not isinstance(model.preprocess, ImagePreprocess):
            raise InvalidInput("label maps need a model with image preprocessing")
        if not truth.is_dir():
            raise InvalidInput(f"'{truth}' is no folder: {LAYOUT}")
        frame = model.preprocess
        found = {}
        for key, image in images.items():
            path = truth / f"{image.stem}.png"
            if path.is_file():
                masks = _label_map(path, image, frame)
                if len(masks):
                    found[key] = masks
        if not found:
            raise InvalidInput(f"'{truth}' has a label map for none of {len(images)} images: {LAYOUT}")
        return found

    def _marked(self, points: Tensor, labels: Sequence[int]) -> Prompt:
        """The model's inputs for points `[Q, P, 2]`, each with the label of its position; other places are unused."""
        count, used = points.shape[:2]
        places = torch.zeros(count, self._names.places, 2)
        marks = torch.full(places.shape[:2], UNUSED, dtype=torch.int32)
        places[:, :used] = points.cpu()
        marks[:, :used] = torch.tensor(labels, dtype=torch.int32)
        return {self._names.points: places, self._names.labels: marks}

    def _corners(self, objects: Tensor) -> Tensor:
        """`[Q, 2, 2]`: the upper left and the lower right pixel of each mask; of the whole image where it is empty."""
        rows, columns = objects.any(-1).float(), objects.any(-2).float()
        height, width = objects.shape[-2:]
        left, top = columns.argmax(-1), rows.argmax(-1)
        right, bottom = width - columns.flip(-1).argmax(-1), height - rows.flip(-1).argmax(-1)
        across, down = self._width / width, self._height / height
        edges = torch.stack([left * across, top * down, right * across - 1, bottom * down - 1], -1)
        return edges.reshape(-1, 2, 2)

    def _pick(self, masks: Tensor, generator: np.random.Generator) -> Tensor:
        """`[Q]`: the flat index of a random pixel of each mask; of any pixel of an empty one."""
        flat = masks.flatten(1)
        weight = torch.where(flat.any(1, keepdim=True), flat, True).float()
        clocks = torch.from_numpy(generator.exponential(size=tuple(flat.shape))).to(weight)
        return (weight / clocks).argmax(-1)  # the first clock to ring is drawn evenly among places of weight one

    def _point(self, flat: Tensor, size: torch.Size) -> Tensor:
        """The middles of a mask's pixels, as x and y in pixels of the model's input `[Q, 2]`."""
        height, width = size
        x, y = flat % width, flat // width
        return torch.stack([(x + 0.5) * self._width / width - 0.5, (y + 0.5) * self._height / height - 0.5], -1)

    def _chosen(self, outputs: Outputs, judge: Outputs) -> Tensor:
        """Of the candidates for each mask the one to which `judge` gives the highest score."""
        masks = outputs[self._names.masks]
        best = judge[self._names.scores].argmax(-1)[:, None, None, None]
        return masks.gather(1, best.expand(-1, 1, *masks.shape[-2:]))[:, 0]


def accepts(model: Model) -> bool:
    """Whether the model's source says how prompts are given to it."""
    return model.segmentation is not None


def open_task(model: Model) -> Task:
    """The task at the resolution of the model's image input."""
    if model.segmentation is None:
        raise InvalidInput(f"'{model.name}' takes no prompts")
    image = next(spec for spec in model.inputs if len(spec.shape) == 4)
    return SegmentAnything(model.segmentation, int(image.shape[-2]), int(image.shape[-1]))


def _label_map(path: Path, image: Path, frame: ImagePreprocess) -> Tensor:
    """Masks bool `[objects, H, W]` of the objects that show in the frame."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            values = np.asarray(opened if opened.mode in ("P", "L") else opened.convert("L"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"cannot read the label map '{path}': {error}") from error
    size = open_image(image).size
    if (values.shape[1], values.shape[0]) != size:
        found = f"{values.shape[1]} x {values.shape[0]} pixels and its image {size[0]} x {size[1]}"
        raise InvalidInput(f"the label map '{path}' has {found}: {LAYOUT}")
    numbers = [int(value) for value in np.unique(values) if value not in (0, NOTHING)]
    pictures = [Image.fromarray((values == number).astype(np.uint8) * 255).convert("RGB") for number in numbers]
    masks = [_padded(np.asarray(frame.frame(picture))[..., 0] > 127, frame) for picture in pictures]
    shown = [mask for mask in masks if int(mask.sum()) >= LEAST_PIXELS]
    return torch.stack(shown) if shown else torch.zeros(0, frame.height, frame.width, dtype=torch.bool)


def _padded(mask: Array, frame: ImagePreprocess) -> Tensor:
    """At the model's input size: images that keep their proportions lie in its upper left corner."""
    below, right = frame.height - mask.shape[0], frame.width - mask.shape[1]
    return torch.from_numpy(np.pad(mask, ((0, below), (0, right))))
