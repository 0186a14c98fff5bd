"""`edgekit profile` and `edgekit compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgekit.cli import options as given
from edgekit.cli import parts
from edgekit.cli.output import check_file, save_json, say, show_json, show_pairs, show_table
from edgekit.cli.places import opened_place
from edgekit.errors import GateMissed, InvalidInput
from edgekit.interrupts import stoppable

if TYPE_CHECKING:
    from edgekit.measurement import Comparison, Measurement
    from edgekit.op_profile import OpProfile

INTERRUPTED = 130
SHOWN_OPS = 10
Trials = Annotated[int, typer.Option("--trials", help="Trials, each in new processes where these start quickly.")]
Save = Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON document here too.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file at -o.")]


@given.verb("profile", "edgekit profile out -d ssh:pi@raspberrypi.local -o pi.json\n\nNext:  edgekit compare out other")
def profile(
    bundle: given.BundlePath,
    threads: given.Threads = 1,
    calls: Annotated[int, typer.Option("--calls", help="Timed calls: 29 give a p90, 299 a p99, 2995 a p99.9.")] = 300,
    trials: Trials = 5,
    sustained: Annotated[
        str | None, typer.Option("--sustained", help="Call without a pause for 90s, 10m or 1h; Ctrl-C ends it early.")
    ] = None,
    aa: Annotated[bool, typer.Option("--aa", help="Also compare the bundle with itself; fails unless 1 fits.")] = False,
    ops: Annotated[bool, typer.Option("--ops", help="Also time each op, by the runtime's own profiler.")] = False,
    output: Save = None,
    force: Force = False,
    max_latency_ms: Annotated[
        float | None,
        typer.Option("--max-latency-ms", help="Fail when p50 is above; of a sustained run its last."),
    ] = None,
    max_memory_mb: given.MaxMemory = None,
    energy: given.Energy = "off",
    meter: given.Meter = None,
    device: given.Place = None,
    time_limit: given.TimeLimit = None,
    offline_wheels: given.OfflineWheels = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Measure a bundle, here or on a board: load, first run, steady latency, memory, joules, the machine's state."""
    from edgekit.benchmark import compare as compare_bundles
    from edgekit.benchmark import control, energy_of, measure, ops_of
    from edgekit.meters import energy_request
    from edgekit.parts import BundleInParts, is_in_parts
    from edgekit.report_measurement import measurement_cells
    from edgekit.sustained import sustain

    if output:
        check_file(output, force)
    asked = energy_request(energy, meter)
    if is_in_parts(bundle):
        flags = {"--sustained": sustained, "--aa": aa, "-o": output, "--ops": ops, "--energy": asked.mode != "off"}
        parts.refuse(bundle, flags)
        with opened_place(device, time_limit, offline_wheels, quiet) as (place, step):
            each = {
                part.path.name: measure(part, threads=threads, calls=calls, trials=trials, place=place, progress=step)
                for part in BundleInParts.open(bundle).bundles
            }
        _refuse_emulated(next(iter(each.values())), max_latency_ms)
        parts.show_measured(each, json)
        return _said(parts.missed(each, max_latency_ms, max_memory_mb))
    with opened_place(device, time_limit, offline_wheels, quiet) as (place, step):
        joules = None
        if asked.mode != "off" and sustained is None:
            joules = energy_of(bundle, asked, threads=threads, place=place, progress=step)
        by_op = ops_of(bundle, threads=threads, place=place, progress=step) if ops else None
        if sustained is None:
            measured = measure(bundle, threads=threads, calls=calls, trials=trials, place=place, progress=step)
        else:
            seconds = given.seconds(sustained)
            with stoppable() as stopped:
                measured = sustain(
                    bundle, seconds, energy=asked, threads=threads, place=place, stopped=stopped, progress=step
                )
        if aa:
            itself = compare_bundles([bundle, bundle], threads=threads, place=place, progress=step)[0]
            measured = msgspec.structs.replace(measured, control=control(itself))
        measured = msgspec.structs.replace(measured, ops=by_op)
        if joules:
            measured = msgspec.structs.replace(measured, **msgspec.structs.asdict(joules))
    if output:
        save_json(output, measured)
    _refuse_emulated(measured, max_latency_ms)
    if json:
        show_json(measured)
    else:
        show_pairs(measurement_cells(measured))
        if by_op and by_op.ops:
            _show_ops(by_op)
    if code := _said(_missed(measured, max_latency_ms, max_memory_mb)):
        return code
    cut = measured.sustained is not None and measured.sustained.lasted_s < measured.sustained.asked_s
    return INTERRUPTED if cut else 0


@given.verb("compare", "edgekit compare out/fp32 out/int8")
def compare(
    bundles: Annotated[list[Path], typer.Argument(metavar="A B ...", help="Bundles; each is compared with the first.")],
    threads: given.Threads = 1,
    trials: Trials = 5,
    rounds: Annotated[int, typer.Option("--rounds", help="Alternating rounds of ten calls in each trial.")] = 6,
    aa: Annotated[bool, typer.Option("--aa", help="Compare the first with itself too; fails unless 1 fits.")] = False,
    output: Save = None,
    force: Force = False,
    energy: given.Energy = "off",
    meter: given.Meter = None,
    device: given.Place = None,
    time_limit: given.TimeLimit = None,
    offline_wheels: given.OfflineWheels = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Measure bundles in turns and say which is faster, with a confidence interval; no winner where it holds 1.

    With --energy also the joules of each, and no winner where their intervals overlap.
    """
    from edgekit.benchmark import compare as compare_bundles
    from edgekit.benchmark import control, with_energy
    from edgekit.meters import energy_request
    from edgekit.report_measurement import control_text

    if output:
        check_file(output, force)
    given_twice, asked = [bundles[0], *bundles] if aa else bundles, energy_request(energy, meter)
    with opened_place(device, time_limit, offline_wheels, quiet) as (place, step):
        found = compare_bundles(given_twice, threads=threads, trials=trials, rounds=rounds, place=place, progress=step)
        if asked.mode != "off":
            found = with_energy(found, asked, place=place, progress=step)
    itself = control(found[0]) if aa else None
    if output:
        save_json(output, found)
    if json:
        show_json(found)
    else:
        _show_comparisons(found)
        for pair in found[1:] if itself else found:
            say(pair.verdict)
            if pair.energy:
                say(pair.energy.verdict)
    if itself is None:
        return 0
    print(f"A/A control {control_text(itself)}", file=sys.stderr)
    return 0 if itself.holds else GateMissed.exit_code


def _said(missed: list[str]) -> int:
    """Print what was missed, and the exit code of that."""
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return GateMissed.exit_code if missed else 0


def _refuse_emulated(measured: Measurement, max_latency_ms: float | None) -> None:
    if measured.before.emulated and max_latency_ms is not None:
        raise InvalidInput("--max-latency-ms gates a board's speed, and this one is emulated: its times say nothing")


def _missed(measured: Measurement, max_latency_ms: float | None, max_memory_mb: float | None) -> list[str]:
    """What the measurement promised and did not keep."""
    from edgekit.report_measurement import control_text, over

    sustained, control = measured.sustained, measured.control
    name, p50_s = ("the last p50", sustained.final_p50_s) if sustained else ("p50", measured.latency.p50_s)
    missed = over(name, 1e3 * p50_s, max_latency_ms, "ms")
    missed += over("peak memory", measured.peak_rss_bytes / 1e6, max_memory_mb, "MB")
    return missed + ([f"A/A control {control_text(control)}"] if control and not control.holds else [])


def _show_ops(profile: OpProfile) -> None:
    from edgekit.report_ops import op_table, type_table

    for table in (type_table(profile, SHOWN_OPS), op_table(profile, SHOWN_OPS)):
        say("")
        show_table(*table)


def _show_comparisons(found: list[Comparison]) -> None:
    from edgekit.report import EMULATED, milliseconds

    if found[0].a.before.emulated:
        say(EMULATED)
    rows = [[found[0].a.bundle, milliseconds(found[0].a.latency.p50_s), "1", "", ""]]
    for pair in found:
        interval = f"{pair.ratio_ci.low:.3f} to {pair.ratio_ci.high:.3f}"
        span = f"{min(pair.trial_ratios):.3f} to {max(pair.trial_ratios):.3f}"
        rows.append([pair.b.bundle, milliseconds(pair.b.latency.p50_s), f"{pair.ratio:.3f}", interval, span])
    show_table(["bundle", "p50", "time ratio", "95 % interval", f"{len(found[0].trial_ratios)} trials"], rows)
    if found[0].energy:
        _show_joules(found)


def _show_joules(found: list[Comparison]) -> None:
    """What each bundle takes, a model's figure in a line of its own, and the ratios to the first."""
    from edgekit.report_measurement import energy_cells

    for measured in (found[0].a, *(pair.b for pair in found)):
        show_pairs([("bundle", measured.bundle), *energy_cells(measured)])
    ratios = [(pair.b.bundle, pair.energy) for pair in found if pair.energy and pair.energy.ratio_ci]
    for name, energy in ratios:
        interval = f"{energy.ratio_ci.low:.3f} to {energy.ratio_ci.high:.3f}" if energy.ratio_ci else ""
        say(f"joule ratio {name}: {energy.ratio:.3f} ({interval}, {energy.figure})")
