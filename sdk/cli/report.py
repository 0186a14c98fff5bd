"""`edgekit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.output import check_file, save_text, say, show_json


@given.verb("report", "edgekit report out --measurement profile.json -o report.html")
def report(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="OUT ...", help="Bundles of one model, or folders of bundles.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    measurement: Annotated[
        list[Path] | None,
        typer.Option("--measurement", help="What `edgekit profile -o` or `edgekit compare -o` wrote. Repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at -o.")] = False,
    json: given.Json = False,
) -> int:
    """Write one HTML page about bundles: parity, latency, energy, where ops run, sizes, machines. Needs no network."""
    from edgekit.measurement import Measurement
    from edgekit.page.document import page
    from edgekit.page.subjects import find_bundles, read_results

    check_file(output, force)
    found = find_bundles(bundles)
    read = [(path.name, read_results(path)) for path in measurement or ()]
    measured = [(name, made) for name, made in read if isinstance(made, Measurement)]
    compared = [(name, pair) for name, made in read if isinstance(made, tuple) for pair in made]
    text = page(found, measured, compared)
    save_text(output, text)
    if json:
        paths = [str(bundle.path) for bundle in found]
        counts = {"measurements": len(measured), "comparisons": len(compared)}
        show_json({"page": str(output), "bytes": len(text.encode()), "bundles": paths, **counts})
    else:
        say(f"{output}: {len(found)} bundle(s) on one page of {len(text.encode()) / 1e3:.0f} KB. Open it in a browser.")
    return 0
