"""`edgekit calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.output import check_file, progress, say, show_json, show_pairs, show_table, warn

if TYPE_CHECKING:
    from edgekit.calibration_profile import Observed
    from edgekit.profile import Calibration, DeviceProfile


@given.verb("calibrate", "edgekit calibrate -d raspberrypi5 -o my-pi.toml --threads 4\n\n"
            "Next:  edgekit export -m zoo:efficientnet_lite0 -d my-pi.toml -o out")  # fmt: skip
def calibrate(
    device: given.DeviceName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The calibrated profile: a .toml file.")],
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="onnxruntime, litert or executorch; the device's first by default.")
    ] = None,
    threads: given.Threads = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Measure this machine, and write a copy of its profile with the figures found.

    Memory bandwidth by size, the rate of each kind of kernel by dtype and size, and what an op and a call cost beside
    their arithmetic. Takes two minutes on a laptop; stop other programs first.
    """
    from edgekit.calibration import calibrate as calibrate_device
    from edgekit.profile import find_device
    from edgekit.profile_writer import check_path, write_profile

    check_path(output)
    check_file(output, force)
    with progress(quiet) as step:
        profile, found = calibrate_device(find_device(device), runtime, threads=threads, progress=step)
        write_profile(profile, output)
    if json:
        show_json({"profile": profile, "observed": found})
    else:
        _show(profile, found, output)
    warn([f"not measured: {text}" for text in found.skipped])
    return 0


def _show(profile: DeviceProfile, found: Observed, output: Path) -> None:
    made = profile.calibration[-1]
    rates = found.bandwidth.rates
    show_pairs(
        [
            ("device", f"{profile.title}, unit {made.unit}"),
            ("host", made.host),
            ("runtime", f"{made.runtime} {made.runtime_version}, {made.threads} thread(s)"),
            ("copy", ", ".join(f"{_size(r.working_set_bytes)} {r.bytes_per_s / 1e9:.1f}" for r in rates) + " GB/s"),
            ("idle power", _idle_text(found)),
            ("overhead", f"{1e6 * made.op_overhead_s:.2f} us an op, {1e6 * made.call_overhead_s:.1f} us a call"),
        ]
    )
    say("")
    show_table(["kernels", "dtype", "Mop each", "Gop/s", "of the peak"], _rows(profile, made))
    say(f"\nNext:  edgekit export -m zoo:efficientnet_lite0 -d {output} -o out")


def _idle_text(found: Observed) -> str:
    if found.idle is None or found.idle.idle_w is None:
        return "no meter reads it here: see edgekit doctor"
    return f"{found.idle.idle_w:.3g} W  [{found.idle.meter}: {', '.join(found.idle.covers)}]"


def _rows(profile: DeviceProfile, made: Calibration) -> list[list[str]]:
    peaks = next(unit for unit in profile.unit if unit.name == made.unit).peak_ops_per_s
    return [
        [op_class, dtype, f"{point.ops / 1e6:.3g}", f"{rate / 1e9:.3g}", f"{point.fraction:.1%}"]
        for dtype, classes in made.efficiency.items()
        for op_class, points in classes.items()
        for point in points
        for rate in [point.fraction * peaks[dtype].value]
    ]


def _size(count: int) -> str:
    return f"{count >> 10} KiB" if count < 1 << 20 else f"{count >> 20} MiB"
