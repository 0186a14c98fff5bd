"""`edgekit verify`, `inspect`, `list` and `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli import parts
from edgekit.cli.integers import verify_integers
from edgekit.cli.lossless import verify_lossless
from edgekit.cli.output import say, show_json, show_pairs, show_table
from edgekit.cli.places import opened_place
from edgekit.errors import InvalidInput, unknown_name

if TYPE_CHECKING:
    from edgekit.energy import MeterInfo

PLUGINS = {
    "exporters": "edgekit.exporters",
    "compilers": "edgekit.exporters.compilers",
    "runtimes": "edgekit.runtimes",
    "passes": "edgekit.passes",
    "sources": "edgekit.sources",
    "zoo": "edgekit.zoo",
    "students": "edgekit.distill.students",
    "formats": "edgekit.formats",
    "meters": "edgekit.runtimes.meters",
}


@given.verb("verify", "edgekit verify out")
def verify(
    bundle: given.BundlePath,
    min_cosine: given.MinCosine = None,
    min_sqnr_db: given.MinSqnr = None,
    integer_only: given.IntegerOnly = False,
    max_steps: given.MaxSteps = 0,
    threads: given.Threads = 1,
    device: given.Place = None,
    time_limit: given.TimeLimit = None,
    offline_wheels: given.OfflineWheels = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Check every file of a bundle, run its golden samples here or on a board, and compare with PyTorch's answers.

    Needs no torch. Of a folder that `edgekit compress` wrote, decode every tensor and compare it with the source's
    sha256; of one that the dfloat11 package made, which holds no hashes, decode every stream.

    With --integer-only, run every op of an int8 TFLite file in numpy with integers only, and compare each result with
    LiteRT's own: fails where an op needs float, or writes other integers.
    """
    from edgekit.bundle import Bundle
    from edgekit.dfloat11_folder import is_dfloat11
    from edgekit.lossless_folder import MANIFEST as LOSSLESS
    from edgekit.parity import with_gates
    from edgekit.parts import is_in_parts
    from edgekit.report import parity_text
    from edgekit.verification import stored_tolerance
    from edgekit.verification import verify as verify_bundle

    if integer_only:
        if device is not None or min_cosine is not None or min_sqnr_db is not None:
            raise InvalidInput("--integer-only compares integers on this machine: leave -d and the parity gates out")
        if is_in_parts(bundle):
            parts.refuse(bundle, {"--integer-only": True})
        return verify_integers(bundle, max_steps, json, quiet)
    if max_steps:
        raise InvalidInput("--max-steps says how far an op may be off with --integer-only: add that, or leave it out")
    if (bundle / LOSSLESS).is_file() or is_dfloat11(bundle):
        if min_cosine is not None or min_sqnr_db is not None:
            raise InvalidInput(f"'{bundle}' holds lossless weights: every bit counts, and there is no gate to move")
        return verify_lossless(bundle, json, quiet)
    if is_in_parts(bundle):
        with opened_place(device, time_limit, offline_wheels, quiet or device is None) as (place, _):
            return parts.verify(bundle, min_cosine, min_sqnr_db, threads, place, json)
    found = Bundle.open(bundle)
    tolerance = with_gates(stored_tolerance(found), min_cosine, min_sqnr_db)
    with opened_place(device, time_limit, offline_wheels, quiet or device is None) as (place, _):
        parity = verify_bundle(found, tolerance=tolerance, threads=threads, place=place)
    if json:
        show_json(parity)
    else:
        plain = found.artifact.unpacked
        files = len(found.manifest.artifacts) + len(found.manifest.assets)
        pairs = [
            ("files", f"ok  {files} files have the size and sha256 of the manifest"),
            *((("packed", f"ok  it holds the {plain.path} that was exported"),) if plain else ()),
            ("parity", parity_text(parity)),
        ]
        show_pairs([*pairs, *(("miss", miss) for miss in parity.misses)])
    return 0 if parity.ok else 1


@given.verb("inspect", "edgekit inspect out --json")
def inspect(bundle: given.BundlePath, json: given.Json = False) -> int:
    """Show what is in a bundle: tensors, precision, passes, files, parity, where ops ran."""
    from edgekit.bundle import Bundle
    from edgekit.parts import is_in_parts
    from edgekit.report import cells, megabytes, row

    if is_in_parts(bundle):
        return parts.inspect(bundle, json)
    found = Bundle.open(bundle)
    manifest = found.manifest
    if json:
        show_json(manifest)
        return 0
    weights = ", ".join(f"{dtype} {megabytes(size)}" for dtype, size in manifest.precision.weight_bytes.items())
    show_pairs(
        [
            *cells(row(found)),
            ("source", f"{manifest.source.kind}:{manifest.source.ref}  sha256 {manifest.source.sha256}"),
            *(("input", str(spec)) for spec in manifest.inputs),
            *(("output", str(spec)) for spec in manifest.outputs),
            (
                "weights",
                f"{weights}; {manifest.precision.quantized_ops} ops in 8 bits, {manifest.precision.float_ops} float",
            ),
            ("passes", ", ".join(step["pass"] for step in manifest.plan.passes) or "none"),
            *(("because", reason) for reason in manifest.plan.reasons),
            ("tools", ", ".join(f"{name} {found}" for name, found in manifest.tool_versions.items())),
            ("created", manifest.created_utc),
        ]
    )
    say("")
    files: Sequence[tuple[str, str, int, str]] = [
        *((a.path, a.format, a.bytes, a.sha256) for a in manifest.artifacts),
        *((a.path, a.role, a.bytes, a.sha256) for a in manifest.assets),
    ]
    show_table(["file", "is", "bytes", "sha256"], [[p, r, str(b), s[:16]] for p, r, b, s in files])
    return 0


@given.verb("list", "edgekit list exporters")
def list_plugins(
    kind: Annotated[
        str | None,
        typer.Argument(help="exporters, runtimes, passes, sources, zoo, students, formats or meters; all if left out."),
    ] = None,
    json: given.Json = False,
) -> int:
    """List plugins with the first line of their documentation, without loading any."""
    from edgekit import registry

    if kind is not None and kind not in PLUGINS:
        raise unknown_name("kind of plugin", kind, PLUGINS)
    kinds = [kind] if kind else list(PLUGINS)
    found = {k: {name: registry.summary(PLUGINS[k], name) for name in registry.names(PLUGINS[k])} for k in kinds}
    if json:
        show_json(found)
    else:
        show_table(
            ["kind", "name", "what it is"], [[k, n, text] for k, each in found.items() for n, text in each.items()]
        )
    return 0


@given.verb("doctor", "edgekit doctor --json")
def doctor(json: given.Json = False) -> int:
    """Say which backends and energy meters are here, missing or of a wrong version, and how to get them."""
    from edgekit.environments import check_environments
    from edgekit.formats._native_decoder import library
    from edgekit.host import host_state
    from edgekit.meters import survey
    from edgekit.toolchains import check_all

    findings, host, native, meters = check_all(), host_state(), library() is not None, survey()
    environments = check_environments()
    if json:
        decoder = "native" if native else "numpy"
        toolchains = {"toolchains": findings, "environments": environments}
        show_json({"host": host, "lossless_decoder": decoder, **toolchains, "meters": meters})
        return 0
    slow = "NumPy, many times slower: install a C compiler, then edgekit again"
    show_pairs(
        [
            ("host", f"{host.cpu or host.machine}, {host.cores} cores, {host.system}, Python {host.python}"),
            ("lossless weights", f"decoded by {'native code' if native else slow}"),
        ]
    )
    say("")
    show_table(
        ["package", "state", "version", "wanted", "for", "fix"],
        [[f.package, f.state, f.version or "", f.wanted, f.purpose, f.fix or ""] for f in findings],
    )
    say("\nPackages that collide with others, each set in a folder of its own")
    show_table(
        ["set", "state", "version", "for"], [[f.package, f.state, f.version or "", f.purpose] for f in environments]
    )
    for found in environments:
        if found.fix:
            say(f"{found.package}: {found.fix}")
    say("\nEnergy meters")
    show_pairs([(m.name, f"{m.available}  [{_reads(m.info)}]") for m in meters])
    return 0


def _reads(info: MeterInfo) -> str:
    return f"{info.provenance} of {', '.join(info.covers)}" if info.covers else info.provenance
