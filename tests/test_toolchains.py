"""The optional packages and the extras that install them agree, and a wrong version is told from a missing one."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.errors import ToolchainMissing
from edgekit.planning import EXPORTERS
from edgekit.toolchains import TOOLCHAINS, Toolchain, check, check_all, require

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
every_toolchain = pytest.mark.parametrize("toolchain", TOOLCHAINS, ids=lambda t: t.package)


def numpy(minimum: str, below: str | None = None) -> Toolchain:
    return Toolchain(package="numpy", minimum=minimum, below=below, extra="onnx", purpose="arrays")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Toolchain]:
    """Install an empty distribution `edge-thing` of a version; the toolchain wants >=1.20,<2."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(release: str) -> Toolchain:
        info = tmp_path / f"edge_thing-{release}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: edge-thing\nVersion: {release}\n")
        return Toolchain(package="edge-thing", minimum="1.20", below="2", extra="onnx", purpose="a test")

    return install


@every_toolchain
def test_the_extra_names_the_package_with_the_same_limits(toolchain: Toolchain) -> None:
    assert toolchain.extra in EXTRAS
    names = {re.split(r"[\[<>=!~; ]", entry, maxsplit=1)[0]: entry for entry in EXTRAS[toolchain.extra]}
    assert toolchain.package in names, f"extra '{toolchain.extra}' has {EXTRAS[toolchain.extra]}"
    minimum, whole = f"{toolchain.package}>={toolchain.minimum}", f"{toolchain.package}{wanted(toolchain)}"
    assert names[toolchain.package] in (minimum, whole)


def wanted(toolchain: Toolchain) -> str:
    return check(toolchain).wanted


@pytest.mark.parametrize("name", registry.names(EXPORTERS))
def test_a_bundle_asks_for_the_runtime_versions_that_doctor_checks(name: str) -> None:
    asked = registry.load(EXPORTERS, name).RUNTIME_VERSION_RANGE
    assert asked in {f"{toolchain.package}{wanted(toolchain)}" for toolchain in TOOLCHAINS}


def test_an_exporter_of_a_wrong_version_is_refused_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Toolchain(package="numpy", minimum="99", below=None, extra="onnx", purpose="a test")
    monkeypatch.setattr("edgekit.toolchains.TOOLCHAINS", (old,))
    with pytest.raises(ToolchainMissing, match=r"exporter 'x' needs numpy>=99 and found \d.*: pip install 'numpy>=99'"):
        require(("numpy",), "exporter 'x'")
    require(("torch",), "exporter 'x'")  # not in the table: nothing to say


@every_toolchain
def test_an_upper_bound_is_above_the_minimum_and_a_purpose_is_given(toolchain: Toolchain) -> None:
    assert toolchain.purpose
    if toolchain.below:
        assert tuple(map(int, toolchain.minimum.split("."))) < tuple(map(int, toolchain.below.split(".")))


def test_every_toolchain_is_looked_up_once_and_none_is_imported() -> None:
    before = set(sys.modules)
    found = check_all()
    assert [finding.package for finding in found] == [toolchain.package for toolchain in TOOLCHAINS]
    assert not {"torch", "onnx", "onnxruntime", "transformers", "tokenizers"} & (set(sys.modules) - before)


def test_a_good_version_is_found_and_needs_no_fix() -> None:
    finding = check(numpy("1.26"))
    assert (finding.state, finding.version, finding.fix) == ("found", version("numpy"), None)
    assert (finding.package, finding.purpose, finding.wanted) == ("numpy", "arrays", ">=1.26")


def test_the_installed_version_itself_is_good_enough() -> None:
    assert check(numpy(version("numpy"))).state == "found"


def test_a_missing_package_is_installed_with_its_extra() -> None:
    finding = check(Toolchain(package="no-such-thing-here", minimum="1", below=None, extra="onnx", purpose="none"))
    assert (finding.state, finding.version, finding.fix) == ("missing", None, "pip install 'edgekit[onnx]'")


def test_a_version_that_is_too_old_is_replaced() -> None:
    finding = check(numpy("999.1"))
    assert (finding.state, finding.version) == ("wrong version", version("numpy"))
    assert finding.fix == "pip install 'numpy>=999.1'"


@pytest.mark.parametrize("below", ["1", version("numpy")])
def test_a_version_that_is_too_new_is_replaced(below: str) -> None:
    finding = check(numpy("0.1", below))
    assert finding.state == "wrong version"
    assert finding.fix == f"pip install 'numpy>=0.1,<{below}'"


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("1.20", "found"), ("1.20.0", "found"), ("1.20.1", "found"), ("1.21", "found"), ("1.100", "found"),
        ("1.20.0+cpu", "found"), ("1.99.99", "found"), ("1.22.post1", "found"), ("1.19.9", "wrong version"),
        ("1.3", "wrong version"), ("1.9", "wrong version"), ("0.99", "wrong version"), ("1", "wrong version"),
        ("2", "wrong version"), ("2.0", "wrong version"), ("2.0rc1", "wrong version"), ("10.1", "wrong version"),
        ("unknown", "wrong version"),
    ],
)  # fmt: skip
def test_versions_compare_as_numbers(installed: Callable[[str], Toolchain], release: str, state: str) -> None:
    finding = check(installed(release))
    assert (finding.state, finding.version) == (state, release)


def test_trailing_zeros_do_not_make_a_version_newer(installed: Callable[[str], Toolchain]) -> None:
    installed("2")
    for minimum, below, state in (
        ("2.0", None, "found"),
        ("1", "2.0", "wrong version"),
        ("2.0.1", None, "wrong version"),
    ):
        wanted = Toolchain(package="edge-thing", minimum=minimum, below=below, extra="onnx", purpose="a test")
        assert check(wanted).state == state
