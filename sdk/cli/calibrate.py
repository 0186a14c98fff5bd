"""`edgekit calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.output import check_file, say, show_json, show_pairs, show_table, warn
from edgekit.cli.places import opened_place

if TYPE_CHECKING:
    from edgekit.calibration_profile import Observed
    from edgekit.profile import Calibration, DeviceProfile


@given.verb("calibrate", "edgekit calibrate raspberrypi5 -d ssh:pi@raspberrypi.local -o my-pi.toml --threads 4\n\n"
            "Next:  edgekit export -m zoo:efficientnet_lite0 -d my-pi.toml -o out")  # fmt: skip
def calibrate(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE", help="What is measured, named as in -d of `edgekit export`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The calibrated profile: a .toml file.")],
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="onnxruntime, litert or executorch; the device's first by default.")
    ] = None,
    threads: given.Threads = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    device: given.Place = None,
    time_limit: given.TimeLimit = None,
    offline_wheels: given.OfflineWheels = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Measure this machine or a board, and write a copy of its profile with the figures found.

    Memory bandwidth by size, the rate of each kind of kernel by dtype and size, what an op and a call cost beside
    their arithmetic, and watts of work and of rest where a meter is. Takes a minute and a half on a laptop; stop other
    programs first.
    """
    from edgekit.calibration import calibrate as calibrate_device
    from edgekit.profile import find_device
    from edgekit.profile_writer import check_path, write_profile

    check_path(output)
    check_file(output, force)
    known = find_device(profile)
    with opened_place(device, time_limit, offline_wheels, quiet) as (place, step):
        made, found = calibrate_device(known, runtime, threads=threads, place=place, progress=step)
        write_profile(made, output)
    if json:
        show_json({"profile": made, "observed": found})
    else:
        _show(made, found, output)
    warn([f"not measured: {text}" for text in found.skipped])
    warn([f"unsteady: {text}" for text in found.unsteady])
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
            ("power", _power_text(profile, found)),
            ("overhead", f"{1e6 * made.op_overhead_s:.2f} us an op, {1e6 * made.call_overhead_s:.1f} us a call"),
        ]
    )
    say("")
    show_table(["kernels", "dtype", "Mop each", "Gop/s", "of the peak"], _rows(profile, made))
    say(f"\nNext:  edgekit export -m zoo:efficientnet_lite0 -d {output} -o out")


def _power_text(profile: DeviceProfile, found: Observed) -> str:
    energy, power = found.energy, profile.power
    if energy.idle_w is None or power is None or power.active_w is None:
        why = energy.reason.partition(". ")[0] if energy.reason else ", ".join(energy.flags)
        return f"not measured: {why} (edgekit doctor lists every meter)"
    return f"{energy.idle_w:.3g} W idle, {power.active_w.value:.3g} W at work  [{energy.meter}: {power.scope}]"


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
