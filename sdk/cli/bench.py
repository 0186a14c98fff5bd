"""`edgekit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.output import progress, save_json, say, show_json, show_pairs, show_table
from edgekit.types import Value

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
    if _is_given_as_json(found, output, json):
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
    _give(found, bench.cells(found), output, json)
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
    if _is_given_as_json(found, output, json):
        return 0
    say("median and 90th percentile of held-out errors, rank correlation, (graphs)\n")
    show_table(*bench.table(found))
    return 0


@app.command("distill-gpu", epilog="Example:  edgekit bench distill-gpu --work DIR --output distill_gpu.json")
def distill_gpu(
    work: Annotated[Path, typer.Option("--work", help="Folder for data, teacher and cache; kept, and used again.")],
    side: Annotated[int, typer.Option("--side", help="Pixels of the teacher's image.")] = 512,
    hidden: Annotated[int, typer.Option("--hidden", help="Width of the teacher's encoder.")] = 640,
    layers: Annotated[int, typer.Option("--layers", help="Its layers.")] = 12,
    images: Annotated[int, typer.Option("--images", help="Scenes to draw.")] = 3000,
    teacher_seconds: Annotated[float, typer.Option("--teacher-seconds", help="Of training the teacher.")] = 150.0,
    steps: Annotated[int, typer.Option("--steps", help="Of training the student; 0 stops at the teacher.")] = 1500,
    probe_steps: Annotated[int, typer.Option("--probe-steps", help="Of timing each kind of store.")] = 100,
    batch: Annotated[int, typer.Option("--batch", help="Images a step.")] = 64,
    device: Annotated[str, typer.Option("--device", help="cuda, or cpu to try it.")] = "cuda",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the figures here as JSON too.")] = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Distil the encoder of a Segment Anything that is trained first: images/s, GPU busy share, cost of a cache."""
    from edgekit.bench import distill_gpu as bench
    from edgekit.bench._shapes_teacher import TeacherSize

    size = TeacherSize(side=side, hidden=hidden, layers=layers)
    with progress(quiet) as step:
        if not steps:
            show_json(bench.teacher(work, size, images, teacher_seconds, device, step))
            return 0
        found = bench.run(
            work, size=size, images=images, teacher_seconds=teacher_seconds, steps=steps, probe_steps=probe_steps,
            batch=batch, device=device, progress=step,
        )  # fmt: skip
    _give(found, bench.cells(found), output, json)
    return 0


@app.command("distill", epilog="Example:  edgekit bench distill --seeds 3 --output distill.json")
def distill(
    seeds: Annotated[int, typer.Option("--seeds", help="Teachers to train and distil.")] = 3,
    jobs: Annotated[int, typer.Option("--jobs", help="Seeds at work at once, each in a process of one thread.")] = 1,
    cache: Annotated[Path | None, typer.Option("--cache", help="Folder that keeps trained teachers.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the cards here as JSON too.")] = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Distil a toy Segment Anything with every control: is the student true to its teacher, smaller and faster?"""
    from edgekit.bench import distill as bench

    with progress(quiet) as step:
        found = bench.run(seeds, jobs=jobs, cache=cache, progress=step)
    if _is_given_as_json(found, output, json):
        return 0
    show_table(*bench.table(found))
    for each in found.seeds:
        say(f"\nseed {each.seed}")
        for verdict in each.card.verdicts:
            say(f"  {verdict}")
    return 0


@app.command("npu", epilog="Example:  edgekit bench npu --parts vela --output npu.json")
def npu(
    parts: Annotated[str, typer.Option("--parts", help="Names with commas; all when left out.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the figures here as JSON too.")] = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Check the claims about NPUs: rewrites that change nothing, coverage, integer answers. Runs on no NPU."""
    from edgekit.bench import npu as bench

    with progress(quiet) as step:
        found = bench.run([name for name in parts.split(",") if name], step)
    if _is_given_as_json(found, output, json):
        return 0
    show_table(*bench.table(found))
    for part, reason in found.missing.items():
        say(f"{part} was left out: {reason}")
    return 0


def _give(found: Value, cells: list[tuple[str, str]], output: Path | None, json: bool) -> None:
    """Save a result where that was asked for, and show it."""
    if not _is_given_as_json(found, output, json):
        show_pairs(cells)


def _is_given_as_json(found: Value, output: Path | None, json: bool) -> bool:
    """Save a result where that was asked for; whether it was printed as JSON, so that nothing else may be."""
    if output:
        save_json(output, found)
    if json:
        show_json(found)
    return json
