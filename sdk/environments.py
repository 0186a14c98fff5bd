"""Packages that collide with those of other toolchains, each set in a folder of its own.

A vendor's compiler pins versions that other toolchains cannot use. Its environment is a folder that only the process
which drives the compiler finds before the installed packages (`edgekit.isolation`). It holds what collides and no more:
torch and edgekit are those that are installed.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

from edgekit.toolchains import Finding, State
from edgekit.types import Value

VARIABLE = "EDGEKIT_ENVS"  # names another folder for all of them
USUAL = "~/.cache/edgekit/envs"


class Environment(Value, frozen=True, kw_only=True):
    """Packages that collide with the installed ones, in versions that were tried together."""

    name: str
    pins: tuple[str, ...]  # "name==version"
    purpose: str
    python: tuple[tuple[int, int], ...] = ()  # versions there are wheels for, where not all of edgekit's
    machines: tuple[str, ...] = ()  # the same of `sys.platform` and processor: "linux-x86_64"


ENVIRONMENTS = (
    Environment(
        name="executorch-arm",
        pins=("ethos-u-vela==5.1.0", "tosa-tools==2026.5.0", "ml_dtypes==0.5.1"),
        purpose="ExecuTorch for Ethos-U NPUs",
    ),
    Environment(
        name="rknn",
        pins=(
            "rknn-toolkit2==2.5.0",
            "numpy==1.26.4",
            "onnx==1.18.0",
            "protobuf==4.25.4",
            "scipy==1.17.1",
            "setuptools==75.8.0",
            "opencv-python-headless==4.11.0.86",
            "ruamel.yaml==0.18.10",
            "fast-histogram==0.14",
            "psutil==7.2.2",
            "tqdm==4.67.1",
        ),
        purpose="compile for Rockchip NPUs (proprietary)",
        python=((3, 11), (3, 12)),
        machines=("linux-x86_64", "linux-aarch64"),
    ),
)


def find_environment(name: str) -> Environment:
    """The environment of this name."""
    return next(each for each in ENVIRONMENTS if each.name == name)


def environment_folder(name: str) -> Path:
    """Where an environment lies: one for each version of Python, whose native modules fit no other."""
    root = Path(os.environ.get(VARIABLE) or USUAL).expanduser()
    return root / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"


def check_environments() -> list[Finding]:
    """Look up every environment without importing anything from it."""
    return [check_environment(environment) for environment in ENVIRONMENTS]


def check_environment(environment: Environment) -> Finding:
    """Look up one environment: all its packages in their versions, or how to make it."""
    folder = environment_folder(environment.name)
    wanted = {_plain(name): release for name, _, release in (pin.partition("==") for pin in environment.pins)}
    found: dict[str, str] = {}
    for each in distributions(path=[str(folder)]):  # pip leaves the record of a version that another was put over
        name = _plain(each.name)
        found[name] = f"{found[name]} and {each.version}" if name in found else each.version
    wrong = [f"{name} {found[name]}" for name in wanted if name in found and found[name] != wanted[name]]
    state: State = "missing" if wanted.keys() - found.keys() else "wrong version" if wrong else "found"
    return Finding(
        package=environment.name,
        purpose=environment.purpose,
        state=state,
        version=", ".join(wrong) or found.get(_plain(environment.pins[0].partition("==")[0])),
        wanted=" ".join(environment.pins[:2]),
        fix=None if state == "found" else _making(environment),
    )


def environment_missing(name: str, by: str) -> str | None:
    """Why the environment that `by` needs is not there, with the command that makes it; None where it is."""
    found = check_environment(find_environment(name))
    if found.state == "found":
        return None
    there = f"found {found.version}" if found.state == "wrong version" else f"'{environment_folder(name)}' lacks some"
    return f"{by} needs packages in a folder of their own, and {there}: {found.fix}"


def _making(environment: Environment) -> str:
    """The command that makes an environment, or why none can be made here."""
    here, machine = sys.version_info[:2], f"{sys.platform}-{platform.machine()}"
    if environment.python and here not in environment.python:
        served = " or ".join(f"{major}.{minor}" for major, minor in environment.python)
        return f"there are no wheels for Python {here[0]}.{here[1]}: install edgekit with Python {served}"
    if environment.machines and machine not in environment.machines:
        return f"there are wheels for {' and '.join(environment.machines)} only, and this is {machine}"
    folder = environment_folder(environment.name)
    clean = f"rm -r '{folder}' && " if folder.exists() else ""
    return f"{clean}python -m pip install --no-deps --target '{folder}' {' '.join(environment.pins)}"


def _plain(name: str) -> str:
    """A distribution's name as all its spellings are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()
