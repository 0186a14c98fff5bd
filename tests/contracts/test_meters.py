"""Every meter, by existing, goes through these."""

from __future__ import annotations

from typing import get_args

import pytest

from edgekit import registry
from edgekit.energy import Availability, MeterInfo, Provenance
from edgekit.errors import MeterMissing, UnknownName
from edgekit.meters import METERS, parse_meter
from edgekit.types import Value

NAMES = registry.names(METERS)
HERE = {name: parse_meter(name).available() for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_says_what_it_reads_without_being_here(name: str) -> None:
    info = parse_meter(name).info
    assert MeterInfo.from_json(info.to_json()) == info
    assert info.id.startswith(name.partition("_")[0])
    assert info.provenance in get_args(Provenance)
    assert info.update_period_s > 0
    assert info.resolution_j > 0
    assert not {*info.covers} & {*info.excludes}


def test_a_meter_that_is_not_here_says_why_and_how_to_enable_it(name: str) -> None:
    found = HERE[name]
    assert isinstance(found, Availability)
    if found.ok:
        assert (found.reason, found.enable) == (None, None)
        return
    assert found.reason
    assert found.enable
    with pytest.raises(MeterMissing, match=f"meter '{name}' cannot be read here"):
        parse_meter(name).open()


def test_a_meter_that_is_here_counts(name: str) -> None:
    if not HERE[name].ok:
        pytest.skip(f"{name}: {HERE[name]}")
    counter = parse_meter(name).open()
    try:
        first, last = counter.read(), counter.read()
    finally:
        counter.close()
    assert first.t_ns <= last.t_ns
    assert {*counter.info.domains} <= {*first.joules}
    assert all(last.joules[domain] >= first.joules[domain] for domain in first.joules)


def test_its_options_are_frozen_data(name: str) -> None:
    meter = parse_meter(name)
    assert isinstance(meter, Value)
    assert type(meter).from_json(meter.to_json()) == meter
    with pytest.raises(UnknownName, match=f"no option of meter '{name}' is called 'colour'"):
        parse_meter(f"{name},colour=red")
