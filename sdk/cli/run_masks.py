"""`edgekit run` for bundles in parts: a photograph, points and boxes in, a mask out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.cli.output import say, show_json, show_pairs
from edgekit.errors import InvalidInput
from edgekit.segmentation import save_mask

if TYPE_CHECKING:
    from edgekit.processing import Array
    from edgekit.segmentation import Box, Point
    from edgekit.segmenting import SegmentSession


def run_masks(
    session: SegmentSession, image: str, points: Sequence[str], boxes: Sequence[str], save: Path | None, json: bool
) -> int:
    """Show what the prompts mark in one photograph, and save its mask as a PNG where asked."""
    if save and save.suffix.lower() != ".png":
        raise InvalidInput(f"a mask is saved as a PNG: give --save {save.with_suffix('.png')}")
    placed, frames = [_point(text) for text in points], [_box(text) for text in boxes]
    found = session.segment(image, placed, frames)
    if save:
        save_mask(found.mask, save)
    stats = session.stats()
    share, area = float(found.mask.mean()), _extent(found.mask)
    if json:
        size = list(found.mask.shape)
        show_json(
            {"input": image, "size": size, "share": share, "extent": area, "scores": found.scores, "stats": stats}
        )
        return 0
    say(image)
    height, width = found.mask.shape
    where = "nothing" if area is None else f"{share:.1%} of {width} x {height}, within {', '.join(map(str, area))}"
    times = ", ".join(f"{name} {1e3 * each.total_s:.1f} ms" for name, each in stats.items())
    lines = [("mask", where), ("score", ", ".join(f"{score:.3f}" for score in found.scores)), ("time", times)]
    show_pairs(lines + ([("saved", str(save))] if save else []))
    return 0


def _point(text: str) -> Point:
    numbers = _numbers(text, (2, 3), "--point", "X,Y or X,Y,0 for what is none of the object")
    return (*numbers[:2], int(numbers[2])) if len(numbers) == 3 and numbers[2].is_integer() else tuple(numbers)  # type: ignore[return-value]


def _box(text: str) -> Box:
    x0, y0, x1, y1 = _numbers(text, (4,), "--box", "X0,Y0,X1,Y1")
    return x0, y0, x1, y1


def _numbers(text: str, counts: Sequence[int], option: str, wanted: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise InvalidInput(f"{option} '{text}' is not {wanted}, in pixels of the photograph")
    return numbers


def _extent(mask: Array) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 around the mask, the last two outside of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
