"""What a student is trained on: images in a folder, or inputs in memory, each with a key that its content gives it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgekit.compression import Progress, silent
from edgekit.dataset import BUILTIN, arrays_sha256, check_sample, image_files, load_dataset, npz_rows
from edgekit.errors import InvalidInput
from edgekit.processing import Array, Arrays, Assets, ImagePreprocess, Preprocess, image_size
from edgekit.types import TensorSpec

SHOW_EVERY = 1000  # files between lines of progress
IN_MEMORY = hashlib.sha256(b"arrays as they are").hexdigest()  # the preprocessing of what comes prepared


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs of a site by number; nothing is read before it is asked for."""

    origin: str
    keys: tuple[str, ...]  # sha256 of the file, or of the arrays; the same content has the same key
    preprocess_sha256: str  # two sets whose keys and preprocessing are equal give equal arrays
    valid: Sequence[Array | None]  # bool [H, W] of the input: False where preprocessing padded; None: all is image
    load: Callable[[int], Arrays]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Arrays:
        """One sample, each array with a leading axis of 1. Raises `InvalidInput` that names a file it cannot read."""
        return self.load(index)

    def batch(self, indices: Sequence[int], pinned: bool = False) -> dict[str, Tensor]:
        """Samples joined along axis 0; in pinned memory for a GPU, which copies from there while it computes.

        Each sample goes to its place at once: fresh memory for all of them would cost more than reading them.
        """
        joined: dict[str, Tensor] = {}
        for row, index in enumerate(indices):
            for name, array in self[index].items():
                sample = torch.from_numpy(array)
                if row == 0:
                    joined[name] = sample.new_empty((len(indices), *sample.shape[1:]), pin_memory=pinned)
                joined[name][row] = sample[0]
        return joined

    def valid_batch(self, indices: Sequence[int]) -> Tensor | None:
        """Masks `[N, H, W]` joined, None where no image is padded."""
        masks = [self.valid[index] for index in indices]
        given = [mask for mask in masks if mask is not None]
        if not given:
            return None
        whole = np.ones_like(given[0])
        return torch.from_numpy(np.stack([whole if mask is None else mask for mask in masks]))


def open_images(
    text: str,
    inputs: tuple[TensorSpec, ...],
    preprocess: Preprocess | None,
    assets: Assets,
    progress: Progress = silent,
) -> Images:
    """`DIR_OF_IMAGES`, `file.npz` (an array for each input, samples along axis 0) or `builtin:NAME`.

    Raises `InvalidInput` that names the folder without images, the file that is no image, the array that does not fit.
    """
    path = Path(text)
    if text.startswith("builtin:"):
        return from_samples(load_dataset(text, inputs, preprocess, assets).samples, text)
    if path.suffix == ".npz":
        rows = npz_rows(path, inputs)
        count = len(next(iter(rows.values())))
        samples = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(count)]
        for index, sample in enumerate(samples):
            check_sample(sample, inputs, f"sample {index} of '{path}'")
        return from_samples(samples, text)
    if text and os.path.isdir(text):
        return _folder(path, inputs, preprocess, assets, progress)
    raise InvalidInput(
        f"no images at '{text}': give a folder of images, a file.npz, or builtin:NAME with {', '.join(BUILTIN)}"
    )


def from_samples(samples: Sequence[Arrays], origin: str = "arrays in memory") -> Images:
    """Inputs that are prepared already, each array with a leading axis of 1. Raises `InvalidInput` for none."""
    if not samples:
        raise InvalidInput(f"{origin}: there is no sample to learn from")
    held = tuple(samples)
    keys = tuple(arrays_sha256([sample]) for sample in held)
    return Images(origin, keys, IN_MEMORY, (None,) * len(held), held.__getitem__)


def _folder(
    path: Path, inputs: tuple[TensorSpec, ...], preprocess: Preprocess | None, assets: Assets, progress: Progress
) -> Images:
    """Every file is read once, for its key and its size, so a bad one is named before any work is done."""
    files, prepare = image_files(path, preprocess)
    keys, sizes = [], []
    for number, file in enumerate(files):
        if number % SHOW_EVERY == 0:
            progress(f"read image {number + 1} of {len(files)}")
        try:
            content = file.read_bytes()
            sizes.append(image_size(content))
        except (InvalidInput, OSError) as error:
            raise InvalidInput(f"'{file}' cannot be learnt from: {error}; repair it or take it out") from error
        keys.append(hashlib.sha256(content).hexdigest())

    def load(index: int) -> Arrays:
        return prepare(files[index], assets)

    check_sample(load(0), inputs, f"image '{files[0]}'")  # the others have its shape
    preprocess_sha256 = hashlib.sha256(prepare.to_json().encode()).hexdigest()
    return Images(str(path), tuple(keys), preprocess_sha256, _Masks(prepare, tuple(sizes)), load)


@dataclass(frozen=True)
class _Masks(Sequence["Array | None"]):
    """Masks made when they are asked for: a thousand of them are a gigabyte."""

    preprocess: ImagePreprocess
    sizes: tuple[tuple[int, int], ...]  # (height, width) of each file

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Array | None:  # type: ignore[override]
        rows, columns = self.preprocess.valid_size(*self.sizes[index])
        if (rows, columns) == (self.preprocess.height, self.preprocess.width):
            return None
        mask = np.zeros((self.preprocess.height, self.preprocess.width), bool)
        mask[:rows, :columns] = True
        return mask
