"""What a model's size alone says about its latency: for models whose graph nobody here can build, and as a baseline."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgekit.cost.fitting import TEST_SHARE, HeldOut, errors
from edgekit.errors import InvalidInput

UNITS = {"K": 1e3, "M": 1e6, "B": 1e9}


class Size(NamedTuple):
    """What a model's page says of it."""

    parameters: float
    pixels: float  # of its input; its tokens, for text


class Point(NamedTuple):
    """One measured model."""

    family: str
    size: Size
    seconds: float


def read_sizes(path: Path) -> dict[str, Size]:
    """Sizes from a JSON file of model pages, of models that are one graph. Raises `InvalidInput`."""
    try:
        pages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot read the model pages '{path}': {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"'{path}' is not JSON: {error}") from error
    if not isinstance(pages, dict):
        raise InvalidInput(f"'{path}' holds no object of models by name")
    found = {name: size_of(page) for name, page in pages.items() if isinstance(page, dict)}
    return {name: size for name, size in found.items() if size}


def size_of(page: Mapping[str, Any]) -> Size | None:
    """The size that a page gives, None where it gives none that can be read."""
    parameters = re.fullmatch(r"([\d.]+)([KMB])", str(page.get("Number of parameters", "")))
    sides = [int(side) for side in re.findall(r"\d+", str(page.get("Input resolution", "")).partition("(")[0])]
    if not parameters or not sides or min(sides) < 1 or parameters[1].count(".") > 1 or parameters[1] == ".":
        return None
    count = float(parameters[1]) * UNITS[parameters[2]]
    return Size(count, float(math.prod(sides))) if count else None


def held_out_scaling(points: Sequence[Point], splits: int, seed: int = 0) -> HeldOut | None:
    """Errors of time as powers of parameters and pixels, on families left out; None below four families."""
    families = sorted({point.family for point in points})
    if len(families) < 4:
        return None
    facts = np.array([[1.0, math.log(p.size.parameters), math.log(p.size.pixels)] for p in points])
    target = np.log([point.seconds for point in points])
    rng = np.random.default_rng(seed)
    predicted: dict[int, list[float]] = {}
    for _ in range(splits):
        out = set(rng.permutation(families)[: max(1, round(TEST_SHARE * len(families)))])
        test = np.array([point.family in out for point in points])
        powers = np.linalg.lstsq(facts[~test], target[~test], rcond=None)[0]
        for index in np.flatnonzero(test):
            predicted.setdefault(int(index), []).append(float(np.exp(facts[index] @ powers)))
    known = sorted(predicted)
    return errors([(points[i].family, points[i].seconds, predicted[i]) for i in known])
