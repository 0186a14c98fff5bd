"""Ask a promptable model in parts about photographs: `edgekit.open_session(OUT)` where OUT holds such a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgekit.errors import InvalidInput
from edgekit.parts import BundleInParts
from edgekit.place import HERE, Place, open_at
from edgekit.processing import Array, Arrays, open_image
from edgekit.segmentation import Box, Picture, Point
from edgekit.session import SessionStats


class Segments(NamedTuple):
    """What the prompts mark in a photograph."""

    mask: Array  # bool [H, W] of the photograph
    scores: tuple[float, ...]  # how good the model takes the mask of each object to be: forecasts of its IoU


class SegmentSession:
    """Both parts, open. Use it as a context manager, or call `close`.

    The embedding of the newest photograph is kept, so that further clicks on it cost the small part only.
    """

    def __init__(self, found: BundleInParts, *, threads: int = 1, place: Place = HERE) -> None:
        self._names, self._preprocess = found.record.segmentation, found.preprocess
        self._assets = found.encoder.assets()
        self._encoder = open_at(place, found.encoder, threads)
        try:
            self._rest = open_at(place, found.rest, threads)
        except BaseException:
            self._encoder.close()
            raise
        self._kept: tuple[str, Picture, Arrays] | None = None

    def segment(
        self, image: str | Path | bytes | Array, points: Sequence[Point] = (), boxes: Sequence[Box] = ()
    ) -> Segments:
        """The mask of what points and boxes mark in a photograph, in its own pixels.

        `image` is a path, the bytes of an image file, or a uint8 array `[H, W, 3]` or `[H, W]`. A point is (x, y), or
        (x, y, 0) for what is no part of the object; a box is (x0, y0, x1, y1). All points, with one box or none, mark
        one object; several boxes mark an object each, and the mask holds them all.

        Raises `InvalidInput` for an image that cannot be read, and for a prompt outside of it.
        """
        if len(boxes) > 1 and points:
            raise InvalidInput("points do not say which of several boxes they are of: ask for one box at once")
        picture, embedding = self._embed(image)
        placed = [picture.point(point) for point in points]
        frames: list[Box | None] = [picture.box(box) for box in boxes]
        mask, scores = np.zeros((picture.height, picture.width), bool), []
        for frame in frames or [None]:
            outputs = self._rest.run({**embedding, **self._names.prompt(placed, frame)})
            best = int(outputs[self._names.scores][0].argmax())
            mask |= picture.mask(outputs[self._names.masks][0, best], self._preprocess)
            scores.append(float(outputs[self._names.scores][0, best]))
        return Segments(mask, tuple(scores))

    def stats(self) -> dict[str, SessionStats]:
        """Calls and times of each part so far."""
        return {"encoder": self._encoder.stats(), "rest": self._rest.stats()}

    def close(self) -> None:
        """Free both parts."""
        self._kept = None
        self._encoder.close()
        self._rest.close()

    def __enter__(self) -> SegmentSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _embed(self, image: str | Path | bytes | Array) -> tuple[Picture, Arrays]:
        """What the encoder makes of an image, which is computed once for the newest."""
        source: bytes | Array = _content(image) if isinstance(image, str | Path) else image
        key = _key(source)
        if self._kept is None or self._kept[0] != key:
            decoded = np.asarray(open_image(source))
            feeds = self._preprocess(decoded, self._assets)
            self._kept = (key, Picture.of(decoded, self._preprocess), self._encoder.run(feeds))
        return self._kept[1:]


def _content(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"image '{path}' cannot be read: {error.strerror}") from error


def _key(source: bytes | Array) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    shown: Any = np.ascontiguousarray(source)
    return hashlib.sha256(f"{shown.dtype}{shown.shape}".encode() + shown.tobytes()).hexdigest()
