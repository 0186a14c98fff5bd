"""Plugins are found by file name, described without importing them, and third parties can add theirs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.errors import UnknownName

ROOT = Path(__file__).parents[1]
PACKAGES = ("exporters", "runtimes", "passes", "sources", "zoo", "cost", "kernels")
TORCH_FREE = (("runtimes", "onnxruntime"),)

every_package = pytest.mark.parametrize("package", PACKAGES)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` whose installed distribution offers two runtimes."""
    info = tmp_path / "edge_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edgekit.runtimes]\nturbo = edge_plugin_turbo\nbroken = edge_plugin_gone.runtime\n"
        "thing = edge_plugin_turbo:FORMAT\n"
    )
    (tmp_path / "edge_plugin_turbo.py").write_text('"""A very fast runtime.\n\nMore."""\nFORMAT = "turbo"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._external.cache_clear()
    yield tmp_path
    registry._external.cache_clear()
    sys.modules.pop("edge_plugin_turbo", None)


@every_package
def test_every_public_file_of_a_package_is_a_plugin(package: str) -> None:
    files = {path.stem for path in (ROOT / package).glob("*.py") if not path.stem.startswith("_")}
    assert files <= set(registry.names(f"edgekit.{package}"))
    assert list(registry.names(f"edgekit.{package}")) == sorted(registry.names(f"edgekit.{package}"))


def test_the_plugins_the_readme_speaks_of_are_there() -> None:
    assert "onnx" in registry.names("edgekit.exporters")
    assert "onnxruntime" in registry.names("edgekit.runtimes")
    assert {"python", "huggingface", "pt2", "zoo"} <= set(registry.names("edgekit.sources"))


@every_package
def test_a_summary_is_the_first_line_of_the_docstring(package: str) -> None:
    for path in (p for p in (ROOT / package).glob("*.py") if not p.stem.startswith("_")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, f"{path} has no docstring"
        assert registry.summary(f"edgekit.{package}", path.stem) == docstring.splitlines()[0]


def test_listing_every_plugin_imports_none_of_them() -> None:
    code = f"""
import sys
from edgekit import registry
for package in {PACKAGES!r}:
    for name in registry.names("edgekit." + package):
        assert registry.summary("edgekit." + package, name), name
        assert f"edgekit.{{package}}.{{name}}" not in sys.modules, name
assert not {{"torch", "onnx", "onnxruntime", "transformers", "PIL"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("package", "name"), TORCH_FREE)
def test_a_plugin_is_loaded_by_its_file_name(package: str, name: str) -> None:
    module = registry.load(f"edgekit.{package}", name)
    assert module.__name__ == f"edgekit.{package}.{name}"
    assert Path(str(module.__file__)).read_bytes() == (ROOT / package / f"{name}.py").read_bytes()


@pytest.mark.parametrize("wrong", ["onxruntime", "ONNXRuntime", "onnxruntime2", "onnx-runtime"])
def test_an_unknown_name_offers_the_nearest(wrong: str) -> None:
    with pytest.raises(UnknownName, match=f"no runtime is called '{wrong}'. Did you mean 'onnxruntime'\\?"):
        registry.load("edgekit.runtimes", wrong)


def test_a_name_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(UnknownName, match=r"no exporter is called 'zzz'\. There are: .*onnx") as caught:
        registry.load("edgekit.exporters", "zzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "kind"),
    [("exporters", "exporter"), ("runtimes", "runtime"), ("passes", "pass"), ("sources", "source"), ("zoo", "zoo")],
)
def test_the_error_calls_the_plugin_by_what_it_is(package: str, kind: str) -> None:
    with pytest.raises(UnknownName, match=f"^no {kind} is called 'zzz'"):
        registry.load(f"edgekit.{package}", "zzz")


@pytest.mark.parametrize("name", ["", "_private", "../onnx", "onnx.evil", "__init__", "os"])
def test_a_name_can_not_reach_outside_its_package(name: str) -> None:
    with pytest.raises(UnknownName):
        registry.load("edgekit.exporters", name)


def test_a_package_without_plugins_says_so() -> None:
    with pytest.raises(UnknownName, match="There are: none"):
        registry.load("edgekit.device_profiles", "anything")


def test_an_entry_point_adds_a_plugin(plugins: Path) -> None:
    assert {"turbo", "onnxruntime"} <= set(registry.names("edgekit.runtimes"))
    assert "turbo" not in registry.names("edgekit.exporters")
    assert registry.summary("edgekit.runtimes", "turbo") == "A very fast runtime."
    assert "edge_plugin_turbo" not in sys.modules
    assert registry.load("edgekit.runtimes", "turbo").FORMAT == "turbo"


def test_an_entry_point_is_offered_when_a_name_is_misspelt(plugins: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'turbo'"):
        registry.load("edgekit.runtimes", "tubro")


def test_an_entry_point_must_name_a_module(plugins: Path) -> None:
    with pytest.raises(TypeError, match=r"'thing' of group 'edgekit.runtimes' must name a module"):
        registry.load("edgekit.runtimes", "thing")


def test_an_entry_point_whose_module_is_gone_does_not_break_the_listing(plugins: Path) -> None:
    assert registry.summary("edgekit.runtimes", "broken") == ""
