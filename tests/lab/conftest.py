"""Fixtures of the lab. Where a piece is missing a test is skipped by its name; with EDGEKIT_LAB=required it fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab.environment import Environment, LabMissing, environment

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

Exported = Callable[[str, str], "Bundle"]
MODEL = f"{Path(__file__).parents[1] / 'models.py'}:small_conv"


def need(check: Callable[..., object], *arguments: str) -> None:
    """Skip the test, or fail it where the lab is required, for what `check` misses."""
    try:
        check(*arguments)
    except LabMissing as missing:
        if os.environ.get("EDGEKIT_LAB") == "required":
            pytest.fail(f"the lab is required and incomplete: {missing}")
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def lab() -> Environment:
    """The arm64 root and its wheels."""
    need(environment)
    return environment()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, pixels_npz: Path) -> Callable[[str, str], Bundle]:
    """A small verified bundle of a format and precision, exported when it is first asked for."""
    from edgekit.drafting import ExportOptions
    from edgekit.pipeline import export

    made: dict[tuple[str, str], Bundle] = {}
    folder = tmp_path_factory.mktemp("bundles")

    def get(format: str, precision: str) -> Bundle:
        if (format, precision) not in made:
            options = ExportOptions(format=format, precision=precision, calibration=str(pixels_npz), measure=False)
            made[format, precision] = export(MODEL, "raspberrypi5", folder / f"{format}-{precision}", options)
        return made[format, precision]

    return get
