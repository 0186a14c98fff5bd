"""A bundle in parts: one model as several graphs that run after each other, each in a bundle of its own.

    OUT/parts.json   this module's `Parts`
    OUT/encoder/     a bundle, as `edgekit.bundle` describes it
    OUT/rest/        a bundle that takes the encoder's outputs, by their names

Each part is verified, measured and moved to a board like any other bundle. Golden sample i of the rest was made from
golden sample i of the encoder, so that the two hold the whole model's answers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle import MANIFEST, MAX_MANIFEST_BYTES, PARTS, Bundle, file_sha256
from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.parity import Parity, Tolerance, compare
from edgekit.place import HERE, Place, open_at
from edgekit.processing import Array, Arrays, ImagePreprocess
from edgekit.segmentation import Segmentation
from edgekit.session import Session
from edgekit.types import Value
from edgekit.verification import verify

SCHEMA_VERSION = 1
ENCODER, REST = "encoder", "rest"


class Chain(Value, frozen=True, kw_only=True):
    """The parts one after the other, held against PyTorch's whole model."""

    parity: Parity
    mask_iou: float  # of the masks that PyTorch scores best: intersection over union, mean over samples


class Parts(Value, frozen=True, kw_only=True):
    """What `parts.json` holds. `sha256` vouches for the manifest of each part, which vouches for its files."""

    schema_version: int
    name: str
    sha256: dict[str, str]  # folder -> of its manifest; in the order in which the parts run
    segmentation: Segmentation
    chain: Chain | None = None


@dataclass(frozen=True)
class BundleInParts:
    """A bundle in parts whose files were checked."""

    path: Path
    record: Parts
    encoder: Bundle
    rest: Bundle

    @classmethod
    def open(cls, path: str | Path) -> BundleInParts:
        """Read and check all parts. Raises `BundleCorrupt` that names the file."""
        root = Path(path)
        record = _read(root / PARTS)
        for part, sha256 in record.sha256.items():
            if file_sha256(root / part / MANIFEST) != sha256:
                raise BundleCorrupt(
                    f"'{root / part / MANIFEST}' is not the one that '{root / PARTS}' names: the parts were "
                    "not exported together. Export the model again"
                )
        found = cls(root, record, Bundle.open(root / ENCODER), Bundle.open(root / REST))
        _check_wires(found)
        return found

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """The parts in the order in which they run."""
        return self.encoder, self.rest

    @property
    def preprocess(self) -> ImagePreprocess:
        """What makes the encoder's input of a photograph."""
        found = self.encoder.manifest.preprocess
        if not isinstance(found, ImagePreprocess):
            raise BundleCorrupt(f"'{self.encoder.path / MANIFEST}' has no image preprocessing: export the model again")
        return found


def is_in_parts(path: str | Path) -> bool:
    """Whether a folder holds a bundle in parts."""
    return (Path(path) / PARTS).is_file()


def run_chain(sessions: Sequence[Session], feeds: Arrays) -> Arrays:
    """The last part's outputs; every part takes what it needs of the feeds and of the outputs before it."""
    known, outputs = dict(feeds), Arrays()
    for session in sessions:
        outputs = session.run({spec.name: known[spec.name] for spec in session.inputs})
        known |= outputs
    return outputs


def judge_chain(
    found: BundleInParts,
    samples: Sequence[tuple[Arrays, Arrays]],
    tolerance: Tolerance,
    *,
    threads: int = 1,
    place: Place = HERE,
) -> Chain:
    """Run the parts after each other on whole inputs, and compare with PyTorch's outputs of the whole model."""
    with open_at(place, found.encoder, threads) as encoder, open_at(place, found.rest, threads) as rest:
        actual = [run_chain((encoder, rest), feeds) for feeds, _ in samples]
    expected = [outputs for _, outputs in samples]
    names = found.record.segmentation
    iou = [_iou(_best(one, one, names), _best(other, one, names)) for one, other in zip(expected, actual, strict=True)]
    return Chain(parity=compare(expected, actual, tolerance), mask_iou=float(np.mean(iou)))


def verify_parts(
    found: BundleInParts, tolerances: Sequence[Tolerance], *, threads: int = 1, place: Place = HERE
) -> tuple[dict[str, Parity], Chain]:
    """Verify every part on its golden samples, and then the chain, on the same. Needs no torch.

    `tolerances` are of the encoder, the rest and the chain.
    """
    *own, whole = tolerances
    parities = {
        bundle.path.name: verify(bundle, tolerance=tolerance, threads=threads, place=place)
        for bundle, tolerance in zip(found.bundles, own, strict=True)
    }
    pairs = zip(found.encoder.golden(), found.rest.golden(), strict=True)
    samples = [({**pixels, **fed}, expected) for (pixels, _), (fed, expected) in pairs]
    return parities, judge_chain(found, samples, whole, threads=threads, place=place)


def _best(outputs: Arrays, scored: Arrays, names: Segmentation) -> Array:
    """The mask that `scored` has the highest score for, as bool."""
    mask: Array = outputs[names.masks][0, int(scored[names.scores][0].argmax())] > 0
    return mask


def _iou(one: Array, other: Array) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def _read(path: Path) -> Parts:
    if not path.is_file():
        raise InvalidInput(f"'{path.parent}' is no bundle in parts: it has no {PARTS}")
    if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
        raise BundleCorrupt(f"'{path}' has {size} bytes; no sane one has more than {MAX_MANIFEST_BYTES}")
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Parts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleCorrupt(f"'{path}' is not valid: {error}") from error
    if record.schema_version != SCHEMA_VERSION:
        raise BundleCorrupt(
            f"'{path}' has schema version {record.schema_version}, this edgekit reads {SCHEMA_VERSION}: "
            "pip install --upgrade edgekit, or export the model again"
        )
    if tuple(record.sha256) != (ENCODER, REST):
        raise BundleCorrupt(f"'{path}' must name {ENCODER} and {REST}, not {', '.join(record.sha256) or 'nothing'}")
    for part in record.sha256:
        if not (path.parent / part / MANIFEST).is_file():
            raise BundleCorrupt(f"'{path.parent / part / MANIFEST}' is missing: copy the whole folder again")
    return record


def _check_wires(found: BundleInParts) -> None:
    """Raise `BundleCorrupt` unless the rest takes the encoder's outputs and the prompt, and gives masks and scores."""
    names, rest = found.record.segmentation, found.rest.manifest
    made = {spec.name: (spec.dtype, spec.shape) for spec in found.encoder.manifest.outputs}
    made |= {names.points: ("float32", (1, names.places, 2)), names.labels: ("int32", (1, names.places))}
    for spec in rest.inputs:
        if made.get(spec.name) != (spec.dtype, spec.shape):
            raise BundleCorrupt(f"'{found.rest.path}' takes {spec}, which is no output of the encoder and no prompt")
    shapes = {spec.name: spec.shape for spec in rest.outputs}
    if len(shapes.get(names.masks, ())) != 4 or len(shapes.get(names.scores, ())) != 2:
        raise BundleCorrupt(f"'{found.rest.path}' gives no {names.masks} [1, N, h, w] and {names.scores} [1, N]")
    if [spec.name for spec in found.encoder.manifest.inputs] != [found.preprocess.input]:
        raise BundleCorrupt(f"'{found.encoder.path}' takes more than the picture")
