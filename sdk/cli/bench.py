"""`edgekit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.output import progress, say, show_json, show_pairs, show_table

app = typer.Typer(help="Reproduce the tables of the documentation on this machine.", no_args_is_help=True)


@app.command("export-matrix", epilog="Example:  edgekit bench export-matrix --models unet --formats onnx,tflite")
def export_matrix(
    models: Annotated[str, typer.Option("--models", help="Names with commas; all when left out.")] = "",
    formats: Annotated[str, typer.Option("--formats", help="Names with commas; all when left out.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the cells here as JSON too.")] = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Export every architecture to every format, in float and in 8 bits: what converts, parity, delegation."""
    import msgspec

    from edgekit.bench import export_matrix as matrix
    from edgekit.multiformat import choose_formats

    chosen = choose_formats(formats) if formats else ()
    with progress(quiet) as step:
        cells = matrix.run([name for name in models.split(",") if name], chosen, step)
    if output:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(cells), indent=1) + b"\n")
    if json:
        show_json(cells)
        return 0
    show_table(*matrix.table(cells))
    for cell in cells:
        if cell.reason:
            say(
                f"{cell.model} {cell.format} {cell.precision}: {cell.reason}"
                + f" ({cell.upstream})" * bool(cell.upstream)
            )
    return 0


@app.command("kernels", epilog="Example:  edgekit bench kernels --suite lossless --json")
def kernels(
    suite: Annotated[str, typer.Option("--suite", help="Which kernels: lossless.")] = "lossless",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the timings here as JSON too.")] = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Time GPU kernels beside dense products and beside the bound of bytes or instructions."""
    from edgekit.bench import kernels as bench

    with progress(quiet) as step:
        found = bench.run(suite, step)
    if output:
        output.write_text(found.to_json() + "\n", encoding="utf-8")
    if json:
        show_json(found)
        return 0
    show_table(*bench.table(found))
    show_table(*bench.decoding_table(found))
    say(f"{found.device}, memory gave {found.bytes_per_s / 1e12:.2f} TB/s; " +
        ", ".join(f"{name} {bits:.2f} bits a weight" for name, bits in found.bits_per_weight.items()))  # fmt: skip
    return 0


@app.command("energy", epilog="Example:  edgekit bench energy --output energy.json")
def energy(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the figures here as JSON too.")] = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Check a GPU's energy counter: its step, idle power, and joules under load beside those of sampled power."""
    from edgekit.bench import energy as bench

    with progress(quiet) as step:
        found = bench.run(progress=step)
    if output:
        output.write_text(found.to_json() + "\n", encoding="utf-8")
    if json:
        show_json(found)
        return 0
    show_pairs(bench.cells(found))
    return 0


@app.command("cost", epilog="Example:  edgekit bench cost --data aihub_latency.csv --json")
def cost(
    data: Annotated[Path, typer.Option("--data", help="CSV of measured latencies: one row a graph and device.")],
    pages: Annotated[
        Path | None, typer.Option("--pages", help="JSON of what is known of the models: a baseline by size alone.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the fits here as JSON too.")] = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Fit the model of latencies to measurements of public models, and show its errors on families left out."""
    from edgekit.bench import cost as bench

    with progress(quiet) as step:
        found = bench.run(data, pages, step)
    if output:
        output.write_text(found.to_json() + "\n", encoding="utf-8")
    if json:
        show_json(found)
        return 0
    say("median and 90th percentile of held-out errors, rank correlation, (graphs)\n")
    show_table(*bench.table(found))
    return 0
