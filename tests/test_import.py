"""`import edgekit` is light, and the runtime half never needs what only the workstation has."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import pytest

WORKSTATION_ONLY = ("torch", "onnx", "onnxscript", "transformers", "tokenizers")


def loaded_after(code: str) -> set[str]:
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_edgekit_brings_in_no_backend_and_not_even_numpy() -> None:
    assert not {*WORKSTATION_ONLY, "onnxruntime", "numpy", "typer", "PIL"} & loaded_after("import edgekit")


@pytest.mark.parametrize(
    "name", ["verify", "open_session", "measure", "compare", "Bundle", "prepare", "find_device", "verify_weights"]
)
def test_names_of_the_runtime_half_bring_in_no_torch(name: str) -> None:
    assert not {*WORKSTATION_ONLY, "onnxruntime"} & loaded_after(f"import edgekit; edgekit.{name}")


def test_the_command_line_starts_without_torch_or_numpy() -> None:
    loaded = loaded_after("from edgekit.cli.app import run\nassert run(['list', 'exporters', '--json']) == 0")
    assert not {*WORKSTATION_ONLY, "onnxruntime", "numpy"} & loaded


def test_exporting_without_torch_says_what_to_install_and_exits_3() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgekit.cli.app import run\n"
        "print(run(['export', '-m', 'x.py:f', '-d', 'pi5', '-o', 'x', '-q']))\n"
        "import edgekit\n"
        "try: edgekit.load\n"
        "except edgekit.EdgekitError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("3\n")
    assert "pip install 'edgekit[onnx]'" in result.stderr
    assert "pip install 'edgekit[onnx]'" in result.stdout


@pytest.mark.parametrize("package", ["edgekit", "edgekit.distill", "edgekit.npu"])
def test_every_public_name_is_there_and_documented(package: str) -> None:
    found = import_module(package)
    for name in found.__all__:
        first = getattr(found, name)
        assert name == "__version__" or first.__doc__, name
        assert getattr(found, name) is first, f"importing {package}.{name} put its module in the name's place"


def test_a_wrong_public_name_is_an_attribute_error() -> None:
    import edgekit

    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        edgekit.exprot  # noqa: B018
