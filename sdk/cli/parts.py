"""What `export`, `plan`, `verify`, `profile` and `inspect` print of a bundle in parts: each part, and the whole."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cli.output import say, show_json, show_pairs, warn
from edgekit.errors import InvalidInput

if TYPE_CHECKING:
    from edgekit.measurement import Measurement
    from edgekit.parts import BundleInParts, Chain
    from edgekit.place import Place

Pairs = list[tuple[str, str]]


def show_exported(found: BundleInParts, json: bool) -> int:
    """The rows of both parts with their plans' reasons, and their sum; 1 when one missed parity and was kept."""
    from edgekit.report import cells, megabytes, milliseconds, report

    reports = [report(bundle) for bundle in found.bundles]
    chain = found.record.chain
    next_command = f"edgekit run {shlex.quote(str(found.path))} --input PHOTO --point X,Y --save mask.png"
    if json:
        parts = {bundle.path.name: each for bundle, each in zip(found.bundles, reports, strict=True)}
        show_json({"parts": parts, "chain": chain, "next_command": next_command})
    else:
        for bundle, each in zip(found.bundles, reports, strict=True):
            say(bundle.path.name)
            show_pairs([*_reasons(bundle.manifest.plan.reasons), *cells(each.rows[0])])
            say("")
        measured = [each.rows[0].measurement for each in reports]
        whole: Pairs = [("size", megabytes(sum(bundle.model_bytes for bundle in found.bundles)))]
        if all(measured):
            first, further = (each.latency.p50_s for each in measured if each)
            whole.append(("latency", f"{milliseconds(first + further)} a picture and its first prompt, "
                          f"{milliseconds(further)} a further one"))  # fmt: skip
        say("both")
        show_pairs([*whole, *_chain_cells(chain), ("bundle", str(found.path))])
        say(f"\nNext:  {next_command}")
    warn(tuple(dict.fromkeys(f"{text}" for each in reports for text in each.warnings)))
    kept = [bundle.manifest.parity for bundle in found.bundles] + [chain.parity if chain else None]
    return 0 if all(parity and parity.ok for parity in kept) else 1


def verify(
    path: Path, min_cosine: float | None, min_sqnr_db: float | None, threads: int, place: Place, json: bool
) -> int:
    """Both parts on their golden samples, and the chain; 1 where one misses."""
    from edgekit.parity import with_gates
    from edgekit.parts import BundleInParts, verify_parts
    from edgekit.report import parity_text
    from edgekit.verification import stored_tolerance

    found = BundleInParts.open(path)
    gates = [stored_tolerance(bundle) for bundle in found.bundles]
    gates.append(found.record.chain.parity.tolerance if found.record.chain else gates[0])
    moved = [with_gates(gate, min_cosine, min_sqnr_db) for gate in gates]
    parities, chain = verify_parts(found, moved, threads=threads, place=place)
    judged = [*parities.values(), chain.parity]
    if json:
        show_json({"parts": parities, "chain": chain, "ok": all(parity.ok for parity in judged)})
    else:
        shown = [(name, parity_text(parity)) for name, parity in parities.items()]
        show_pairs([*shown, *_chain_cells(chain), *(("miss", miss) for parity in judged for miss in parity.misses)])
    return 0 if all(parity.ok for parity in judged) else 1


def inspect(path: Path, json: bool) -> int:
    """The manifests of both parts and what holds them together, or what a person wants of these."""
    from edgekit.parts import BundleInParts
    from edgekit.report import cells, row

    found = BundleInParts.open(path)
    if json:
        parts = {bundle.path.name: bundle.manifest for bundle in found.bundles}
        show_json({"parts": parts, "record": found.record})
        return 0
    for bundle in found.bundles:
        manifest = bundle.manifest
        specs = [("input", str(spec)) for spec in manifest.inputs] + [("output", str(s)) for s in manifest.outputs]
        say(bundle.path.name)
        show_pairs([*cells(row(bundle)), *specs, *(("because", reason) for reason in manifest.plan.reasons)])
        say("")
    say("both")
    names = found.record.segmentation
    shown = f"{names.points} and {names.labels}, {names.places} places: one for a point, two for a box"
    show_pairs([("model", found.record.name), ("prompt", shown), *_chain_cells(found.record.chain)])
    say(f"\nFiles and passes of a part:  edgekit inspect {shlex.quote(str(found.encoder.path))}")
    return 0


def show_measured(measured: dict[str, Measurement], json: bool) -> None:
    """Every part, and what a picture takes."""
    from edgekit.report import milliseconds
    from edgekit.report_measurement import measurement_cells

    seconds = sum(each.latency.p50_s for each in measured.values())
    if json:
        show_json({"parts": measured, "p50_s": seconds})
        return
    for name, each in measured.items():
        say(name)
        show_pairs(measurement_cells(each))
        say("")
    say(f"both   p50 {milliseconds(seconds)} a picture and its first prompt")


def missed(measured: dict[str, Measurement], max_latency_ms: float | None, max_memory_mb: float | None) -> list[str]:
    """What the parts together promised and did not keep: a picture waits for all, and all are open at once."""
    from edgekit.report_measurement import over

    names, each = " and ".join(measured), measured.values()
    seconds, memory = sum(one.latency.p50_s for one in each), sum(one.peak_rss_bytes for one in each)
    return [
        *over(f"p50 of {names}", 1e3 * seconds, max_latency_ms, "ms"),
        *over(f"peak memory of {names}, a process each,", memory / 1e6, max_memory_mb, "MB"),
    ]


def refuse(path: Path, given: dict[str, Any]) -> None:
    """Raise `InvalidInput` that names an option which one graph takes and a bundle in parts does not."""
    for option, value in given.items():
        if value:
            raise InvalidInput(f"{option} is for one graph: give it with a part, as in '{path / 'encoder'}'")


def _reasons(reasons: Sequence[str]) -> Pairs:
    return [(reason.split()[0], reason.split(maxsplit=1)[1]) for reason in reasons]


def _chain_cells(chain: Chain | None) -> Pairs:
    from edgekit.report import parity_text

    if chain is None:
        return []
    return [("parity", parity_text(chain.parity)), ("masks", f"IoU {chain.mask_iou:.4f} with PyTorch's")]
