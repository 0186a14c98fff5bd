"""Packages that collide with others: found in a folder of their own, or named with the command that makes one."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from edgekit import environments
from edgekit.environments import (
    ENVIRONMENTS,
    VARIABLE,
    Environment,
    check_environment,
    environment_folder,
    environment_missing,
)

PINNED = Environment(name="two", pins=("Edge_Thing==1.2", "other==3"), purpose="a test")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(environments, "ENVIRONMENTS", (PINNED,))
    return tmp_path


def install(name: str, release: str) -> None:
    info = environment_folder("two") / f"{name}-{release}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")


def test_a_folder_serves_one_version_of_python(root: Path) -> None:
    assert environment_folder("two") == root / f"two-py{sys.version_info.major}{sys.version_info.minor}"


def test_without_the_variable_folders_lie_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert environment_folder("rknn").parent == Path("~/.cache/edgekit/envs").expanduser()


def test_a_folder_that_is_not_there_comes_with_the_command_that_makes_it(root: Path) -> None:
    found = check_environment(PINNED)
    folder = environment_folder("two")
    assert (found.state, found.version) == ("missing", None)
    assert found.fix == f"python -m pip install --no-deps --target '{folder}' Edge_Thing==1.2 other==3"
    assert environment_missing("two", "a compiler") == (
        f"a compiler needs packages in a folder of their own, and '{folder}' lacks some: {found.fix}"
    )


def test_a_whole_folder_is_found_however_its_packages_are_spelt(root: Path) -> None:
    install("edge.thing", "1.2")
    install("Other", "3")
    found = check_environment(PINNED)
    assert (found.state, found.version, found.fix) == ("found", "1.2", None)
    assert environment_missing("two", "a compiler") is None


def test_a_half_made_folder_is_made_again(root: Path) -> None:
    install("edge-thing", "1.2")
    found = check_environment(PINNED)
    assert found.state == "missing"
    assert (found.fix or "").startswith(f"rm -r '{environment_folder('two')}' && python -m pip")


def test_a_wrong_version_is_named(root: Path) -> None:
    install("edge-thing", "1.3")
    install("other", "3")
    assert (check_environment(PINNED).state, check_environment(PINNED).version) == ("wrong version", "edge-thing 1.3")
    assert "and found edge-thing 1.3: rm -r" in (environment_missing("two", "a compiler") or "")


def test_a_version_put_over_another_is_not_trusted(root: Path) -> None:
    for release in ("1.1", "1.2"):
        install("edge-thing", release)
    install("other", "3")
    found = check_environment(PINNED)
    assert found.state == "wrong version"
    assert {*(found.version or "").removeprefix("edge-thing ").split(" and ")} == {"1.1", "1.2"}


def test_where_there_are_no_wheels_that_is_said_instead_of_a_command(root: Path) -> None:
    old = Environment(name="two", pins=("thing==1",), purpose="a test", python=((3, 6), (3, 7)))
    assert (check_environment(old).fix or "").endswith("install edgekit with Python 3.6 or 3.7")
    other = Environment(name="two", pins=("thing==1",), purpose="a test", machines=("linux-riscv64",))
    here = f"{sys.platform}-{platform.machine()}"
    assert check_environment(other).fix == f"there are wheels for linux-riscv64 only, and this is {here}"


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda each: each.name)
def test_every_pin_is_exact(environment: Environment) -> None:
    assert environment.purpose
    assert all(name and version and version[0].isdigit() for name, _, version in map(split, environment.pins))


def split(pin: str) -> tuple[str, str, str]:
    return pin.partition("==")
