"""`edgekit profile` and `edgekit compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.output import progress, say, show_json, show_pairs, show_table
from edgekit.errors import GateMissed


@given.verb("profile", "edgekit profile out --threads 4\n\nNext:  edgekit compare out other")
def profile(
    bundle: given.BundlePath,
    threads: given.Threads = 1,
    calls: Annotated[int, typer.Option("--calls", help="Timed calls; 29 give a p90, 299 a p99.")] = 300,
    max_latency_ms: Annotated[float | None, typer.Option("--max-latency-ms", help="Fail when p50 is above.")] = None,
    max_memory_mb: given.MaxMemory = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Measure a bundle on this machine: load, first run, steady latency, memory, and the machine's state."""
    from edgekit.benchmark import measure
    from edgekit.report import measurement_cells

    with progress(quiet) as step:
        measured = measure(bundle, threads=threads, calls=calls, progress=step)
    if json:
        show_json(measured)
    else:
        show_pairs(measurement_cells(measured))
    gates = (
        ("p50", 1e3 * measured.latency.p50_s, max_latency_ms, "ms"),
        ("peak memory", measured.peak_rss_bytes / 1e6, max_memory_mb, "MB"),
    )
    missed = [
        f"{name} is {value:.2f} {unit}, the limit is {most:g} {unit}"
        for name, value, most, unit in gates
        if most is not None and value > most
    ]
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return GateMissed.exit_code if missed else 0


@given.verb("compare", "edgekit compare out/fp32 out/int8")
def compare(
    bundles: Annotated[list[Path], typer.Argument(metavar="A B ...", help="Bundles; each is compared with the first.")],
    threads: given.Threads = 1,
    rounds: Annotated[int, typer.Option("--rounds", help="Alternating rounds of ten calls.")] = 30,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Measure bundles in alternating rounds and say which is faster, with a confidence interval."""
    from edgekit.benchmark import compare as compare_bundles
    from edgekit.report import milliseconds

    with progress(quiet) as step:
        found = compare_bundles(bundles, threads=threads, rounds=rounds, progress=step)
    if json:
        show_json(found)
        return 0
    rows = [[found[0].a.bundle, milliseconds(found[0].a.latency.p50_s), "1", ""]]
    for pair in found:
        interval = f"{pair.ratio_ci.low:.3f} to {pair.ratio_ci.high:.3f}"
        rows.append([pair.b.bundle, milliseconds(pair.b.latency.p50_s), f"{pair.ratio:.3f}", interval])
    show_table(["bundle", "p50", "time ratio", "95 % interval"], rows)
    for pair in found:
        say(pair.verdict)
    return 0
