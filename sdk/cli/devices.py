"""`edgekit devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.output import say, show_json, show_pairs, show_table
from edgekit.errors import InvalidInput, unknown_name

if TYPE_CHECKING:
    from edgekit.profile import ComputeUnit, DeviceProfile, Number

UNKNOWN = "-"


@given.verb("devices", "edgekit devices --kind npu\n\nNext:  edgekit devices raspberrypi5")
def devices(
    name: Annotated[str | None, typer.Argument(help="Show one device with its sources.")] = None,
    family: Annotated[
        str | None, typer.Option("--family", help="Only this family: arm64-linux, android, cuda...")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only devices with a cpu, gpu or npu unit.")] = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="Only devices that this runtime or format serves: litert, onnx...")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Only devices with a unit that is fast in it.")] = None,
    json: given.Json = False,
) -> int:
    """List device profiles, or show one with every figure's source."""
    from edgekit.profile import device_ids, find_device, load_shipped

    filters = {"--family": family, "--kind": kind, "--runtime": runtime, "--dtype": dtype}
    if name is not None:
        if used := [flag for flag, value in filters.items() if value is not None]:
            raise InvalidInput(f"{used[0]} filters the list, and '{name}' names one device: leave one of them out")
        profile = find_device(name)
        if json:
            show_json(profile)
        else:
            _show_device(profile)
        return 0
    profiles = [load_shipped(device_id) for device_id in device_ids()]
    for flag, value in filters.items():
        if value is not None:
            profiles = _filtered(profiles, flag, value)
    if json:
        show_json(profiles)
    else:
        columns = ["id", "device", "unit", "int8", "fp16", "GB/s", "memory", "energy", "runtimes"]
        show_table(columns, [_row(profile) for profile in profiles])
        say("\nRates in Top/s, dense, of the unit that work goes to first. - is not known, ? not sure. All about one:")
        say("  edgekit devices NAME")
    return 0


def _filtered(profiles: list[DeviceProfile], flag: str, value: str) -> list[DeviceProfile]:
    """The devices that have a value; an unknown one is refused with the nearest of those that any device has."""
    known = {each for profile in profiles for each in _traits(profile, flag)}
    if value not in known:
        raise unknown_name(f"{flag.removeprefix('--')} of these devices", value, known)
    return [profile for profile in profiles if value in _traits(profile, flag)]


def _traits(profile: DeviceProfile, flag: str) -> set[str]:
    if flag == "--family":
        return {profile.family}
    if flag == "--kind":
        return {unit.kind for unit in profile.unit}
    if flag == "--runtime":
        return {each for choice in profile.runtime for each in (choice.name, choice.format)}
    return {dtype for unit in profile.unit for dtype in unit.fast_dtypes}


def _row(profile: DeviceProfile) -> list[str]:
    unit, memory = profile.main_unit, profile.memory_bytes
    bandwidth = profile.memory[-1].peak_bytes_per_s if profile.memory else None
    return [
        profile.id,
        profile.title,
        unit.name,
        _tera(unit, "int8"),
        _tera(unit, "float16"),
        _figure(bandwidth, 1e9),
        f"{memory / 1e9:.3g} GB" if memory else UNKNOWN,
        ", ".join(sensor.id for sensor in profile.sensor) or "none",
        ", ".join(dict.fromkeys(choice.name for choice in profile.runtime)),
    ]


def _tera(unit: ComputeUnit, dtype: str) -> str:
    return _figure({str(name): peak for name, peak in unit.peak_ops_per_s.items()}.get(dtype), 1e12)


def _figure(number: Number | None, scale: float) -> str:
    """The figure in its unit, with a question mark where the profile is not sure of it."""
    if number is None:
        return UNKNOWN
    value = number.value / scale
    return (f"{value:.0f}" if value >= 100 else f"{value:.3g}") + ("?" if number.status == "unsure" else "")


def _show_device(profile: DeviceProfile) -> None:
    from edgekit.profile import numbers

    show_pairs(
        [
            ("id", profile.id),
            ("device", profile.title),
            ("also", ", ".join(profile.aliases) or "no other name"),
            ("family", profile.family),
            *(("unit", _unit_text(unit)) for unit in profile.unit),
            *(("energy", f"{s.id}: sees {', '.join(s.covers)}; not {', '.join(s.excludes)}") for s in profile.sensor),
            *(("runtime", _runtime_text(profile, index)) for index in range(len(profile.runtime))),
            *(("calibrated", f"{c.runtime} {c.runtime_version} on {c.host}, {c.date}") for c in profile.calibration),
        ]
    )
    say("")
    rows = [
        [path, f"{number.value:g}", number.status, profile.sources[number.source]] for path, number in numbers(profile)
    ]
    show_table(["figure", "value", "status", "source"], rows)
    for note in profile.notes:
        say(f"\n{note}")


def _unit_text(unit: ComputeUnit) -> str:
    """Dtypes, and what an accelerator asks of a graph."""
    said = [f"{unit.name} ({unit.kind}): {', '.join(unit.fast_dtypes)}"]
    if unit.npu:
        said.append(_npu_text(unit.npu))
    if vela := unit.vela:
        said.append(f"vela {vela.accelerator_config} {vela.system_config} {vela.memory_mode}")
    if rknn := unit.rknn:
        said.append(f"rknn {rknn.target_platform}")
    if htp := unit.htp:
        said.append(f"HTP v{htp.htp_arch}, soc id {htp.soc_id}, VTCM {htp.vtcm_mb} MB")
    return "; ".join(said)


def _npu_text(name: str) -> str:
    from edgekit.npu.rules import npu_rules

    rules = npu_rules(name)
    said = [f"rules of {rules.id}"]
    said += ["static shapes"] if rules.static_shapes else []
    said += ["batch 1"] if rules.batch_one else []
    said += [f"at most {rules.max_rank} dimensions"] if rules.max_rank else []
    said += [f"integers for numbers up to {rules.largest_number:g}"] if rules.largest_number else []
    said += [f"layout {rules.layout}"] if rules.layout else []
    said += [f"last axis in steps of {rules.align_bytes} bytes"] if rules.align_bytes else []
    said += [f"{dtype} channels in groups of {count}" for dtype, count in rules.channel_multiple.items()]
    return "; ".join(said)


def _runtime_text(profile: DeviceProfile, index: int) -> str:
    choice = profile.runtime[index]
    fed = f", which {choice.compiler.name} makes of {choice.compiler.reads}" if choice.compiler else ""
    return f"{choice.name} runs {choice.format}{fed}, on {profile.unit_of(choice).name}"
