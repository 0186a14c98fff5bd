"""What a page is about: bundles, and everything that was measured of each, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgekit.bundle import MANIFEST, MAX_MANIFEST_BYTES, Bundle, Manifest
from edgekit.errors import InvalidInput
from edgekit.measurement import Comparison, Measurement
from edgekit.report import Row, row

MOST = 1e15  # of any figure: seconds, bytes and joules of a real run stay far below
AT_EXPORT = "measured at export"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A measurement, and which bundle of the page it is of."""

    label: str
    origin: str  # `AT_EXPORT`, or the file that holds it
    device: str | None  # that the bundle was exported for; None: of no bundle on this page
    measured: Measurement

    @property
    def machine(self) -> str:
        """The processor that ran it."""
        return self.measured.before.cpu or self.measured.before.machine

    @property
    def emulated(self) -> bool:
        """As of the measurement."""
        return self.measured.emulated


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle as the page shows it."""

    label: str
    manifest: Manifest
    row: Row  # with the newest measurement
    runs: tuple[Run, ...]


def find_bundles(paths: Sequence[Path]) -> list[Bundle]:
    """The bundles at `paths`; a folder of bundles, as `export --format all` makes it, stands for each of them."""
    found = []
    for path in paths:
        inner = () if (path / MANIFEST).is_file() else sorted(path.glob(f"*/{MANIFEST}"))
        found += [Bundle.open(each.parent) for each in inner] or [Bundle.open(path)]
    return found


def read_results(path: Path) -> Measurement | tuple[Comparison, ...]:
    """What `edgekit profile -o` or `edgekit compare -o` wrote. Raises `InvalidInput` that names the file."""
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise InvalidInput(f"more than {MAX_MANIFEST_BYTES} bytes")
        content = path.read_bytes()
        if not content.lstrip().startswith(b"["):
            return Measurement.from_json(content)
        return msgspec.json.decode(content, type=tuple[Comparison, ...])
    except (OSError, InvalidInput, msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidInput(
            f"'{path}' is no measurement: {error}. Make one with: edgekit profile OUT -o {path}, or several with: "
            f"edgekit compare OUT OTHER -o {path}"
        ) from error


def check_comparisons(compared: Sequence[tuple[str, Comparison]]) -> None:
    """Raise `InvalidInput` for a comparison with figures that no run gives."""
    for file, each in compared:
        where = f"{file} of '{each.b.bundle}'"
        _check(where, msgspec.to_builtins(each))
        if not (each.ratio > 0 and each.ratio_ci.low <= each.ratio_ci.high):
            raise InvalidInput(f"{where}: a ratio is above 0, and its interval ends above its beginning")


def subjects(
    bundles: Sequence[Bundle], measurements: Sequence[tuple[str, Measurement]]
) -> tuple[list[Subject], list[Run]]:
    """What the page shows of each bundle, and the measurements that are of none of them.

    A measurement belongs to the bundle whose artifact has its sha256. Raises `InvalidInput` for a figure that no run
    gives, such as a time of 0.
    """
    labels = _labels(bundles)
    left = list(measurements)
    found = []
    for label, bundle in zip(labels, bundles, strict=True):
        manifest = bundle.manifest
        _check(f"'{bundle.path}'", msgspec.to_builtins(manifest))
        mine = [each for each in left if _is_of(each[1], bundle)]
        left = [each for each in left if not _is_of(each[1], bundle)]
        given = [(AT_EXPORT, each) for each in manifest.measurements] + mine
        runs = tuple(_run(label, origin, each, manifest.device) for origin, each in given)
        newest = runs[-1].measured if runs else None
        found.append(
            Subject(
                label=label,
                manifest=manifest,
                row=msgspec.structs.replace(row(bundle), measurement=newest),
                runs=runs,
            )
        )
    return found, [_run(each.bundle, origin, each, None) for origin, each in left]


def _run(label: str, origin: str, measured: Measurement, device: str | None) -> Run:
    where = f"{origin} of '{label}'"
    _check(where, msgspec.to_builtins(measured))
    latencies = [measured.latency, *([measured.generation.inter_token] if measured.generation else [])]
    if not all(each.times_s and each.p50_s > 0 for each in latencies):
        raise InvalidInput(f"{where}: a latency needs times, and a p50 above 0")
    if measured.sustained and measured.sustained.minute_1_p50_s <= 0:
        raise InvalidInput(f"{where}: the first minute needs a p50 above 0")
    return Run(label=label, origin=origin, device=device, measured=measured)


def _is_of(measured: Measurement, bundle: Bundle) -> bool:
    if measured.artifact_sha256 is None:
        return Path(measured.bundle) == bundle.path
    return measured.artifact_sha256 == bundle.artifact.sha256


def _labels(bundles: Sequence[Bundle]) -> list[str]:
    """A name for each bundle, with no more in it than tells them apart."""
    short = [f"{bundle.artifact.format} {bundle.manifest.precision.name}" for bundle in bundles]
    if len({bundle.manifest.name for bundle in bundles}) > 1:
        short = [f"{bundle.manifest.name} {name}" for bundle, name in zip(bundles, short, strict=True)]
    if len(set(short)) == len(short):
        return short
    return [f"{name} ({bundle.path})" for bundle, name in zip(bundles, short, strict=True)]


def _check(where: str, value: Any) -> None:
    """Refuse NaN, infinity and sizes that arithmetic would turn into them."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            pending += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            pending += each
        elif isinstance(each, int | float) and not -MOST <= each <= MOST:
            raise InvalidInput(f"{where} holds a number that is not within {MOST:g} of 0: no figure of a run")
