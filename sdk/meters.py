"""Which meter to read: what is here, what covers the unit that runs, and nothing silently for what was asked."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.energy import Availability, Meter, MeterInfo, Provenance
from edgekit.errors import InvalidInput, MeterMissing, unknown_name
from edgekit.types import Value

METERS = "edgekit.runtimes.meters"
EnergyMode = Literal["off", "measured", "any"]
ENGINES = {"xnnpack": "cpu", "builtin": "cpu", "portable": "cpu", "cuda": "gpu", "tensorrt": "gpu", "vulkan": "gpu"}
TRUST: tuple[str, ...] = get_args(Provenance)


class EnergyRequest(Value, frozen=True, kw_only=True):
    """What was asked for: `measured` fails where nothing measures, `any` takes estimates and a model beside them."""

    mode: EnergyMode = "off"
    meter: str | None = None  # NAME,OPTION=VALUE; the best there is when left out


class MeterFinding(Value, frozen=True, kw_only=True):
    """One meter, for `edgekit doctor`."""

    name: str
    info: MeterInfo
    available: Availability


def survey() -> tuple[MeterFinding, ...]:
    """Every meter, what it covers, and why it cannot be read here."""
    found = {name: parse_meter(name) for name in registry.names(METERS)}
    return tuple(MeterFinding(name=name, info=m.info, available=m.available()) for name, m in found.items())


def parse_meter(text: str) -> Meter:
    """`NAME,OPTION=VALUE,...` as a meter. Raises `UnknownName`, `InvalidInput`."""
    name, *options = text.split(",")
    kind = registry.load(METERS, name).METER
    given: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in kind.__struct_fields__:
            raise unknown_name(f"option of meter '{name}'", key, kind.__struct_fields__)
        if not equals:
            raise InvalidInput(f"option '{key}' of meter '{name}' needs a value: {key}=...")
        given[key] = value
    try:
        meter: Meter = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"meter '{text}': {error}") from error
    return meter


def models(text: str) -> bool:
    """Whether the meter that was named is the model, whose figure has its own field."""
    return text.partition(",")[0] == "model"


def unit_of(bundle: Bundle) -> str:
    """What runs a bundle's ops, as its runtime calls it."""
    return bundle.manifest.delegation.unit if bundle.manifest.delegation else "cpu"


def energy_request(mode: str, meter: str | None) -> EnergyRequest:
    """The values of `--energy` and `--meter`; a meter alone asks for a measurement.

    Raises `UnknownName`, `InvalidInput` for what is no meter.
    """
    if mode not in get_args(EnergyMode):
        raise unknown_name("kind of energy figure", mode, get_args(EnergyMode))
    if meter:
        parse_meter(meter)
    return msgspec.convert({"mode": "measured" if meter and mode == "off" else mode, "meter": meter}, EnergyRequest)


def to_do(request: EnergyRequest) -> str:
    """What the person at a meter of their own has to do meanwhile; empty for others."""
    info = parse_meter(request.meter).info if request.meter else None
    return f": {info.privileges}" if info and info.runs_on == "client" else ""


def choose(request: EnergyRequest, unit: str) -> Meter:
    """The meter that was named, or the most trusted one here that covers what `unit` runs on.

    Raises `MeterMissing` with each meter's reason, `InvalidInput` for a meter that cannot see the unit.
    """
    engine = ENGINES.get(unit, unit)
    if request.meter and not (request.mode == "any" and models(request.meter)):
        return _named(request, request.meter, engine)
    reasons, fitting = [], []
    for found in survey():
        trust = found.info.provenance
        if not found.available.ok:
            reasons.append(f"{found.name}: {found.available}")
        elif not (trust.startswith("measured") or (request.mode == "any" and trust == "estimated.platform")):
            reasons.append(f"{found.name}: it does not measure ({trust})")
        elif engine not in found.info.covers:
            reasons.append(f"{found.name}: it does not cover the {engine}")
        else:
            fitting.append((TRUST.index(trust), found.name))
    if not fitting:
        raise MeterMissing(f"nothing here measures the energy of the {engine}. " + ". ".join(reasons))
    return parse_meter(min(fitting)[1])


def _named(request: EnergyRequest, text: str, engine: str) -> Meter:
    meter = parse_meter(text)
    found, info = meter.available(), meter.info
    if not found.ok:
        raise MeterMissing(f"meter '{text}' cannot be read here: {found}")
    if engine in info.excludes:
        raise InvalidInput(
            f"meter '{text}' does not see the {engine}, where this model runs: it covers {', '.join(info.covers)}"
        )
    if request.mode == "measured" and not info.provenance.startswith("measured"):
        raise InvalidInput(f"'{text}' does not measure ({info.provenance}): --energy any shows it for what it is")
    return meter
