"""Load a PyTorch model by name: tell from its form where it comes from, and let a file in `sdk/sources/` find it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from edgekit import registry
from edgekit.errors import InvalidInput, UnknownName
from edgekit.model import Example, Loaded, LoadOptions, Model, make_model
from edgekit.sources._segment_anything import with_prompts
from edgekit.types import DTYPES, DynamicDim, ModelSource, TensorSpec

SOURCES = "edgekit.sources"
ZOO = "edgekit.zoo"
DISTILLED = "distilled.json"  # in a folder that `edgekit distill` wrote
REWRITTEN = "rewritten.json"  # in a folder that `edgekit analyze --fix` wrote


def load(
    ref: str | nn.Module,
    example: Example | None = None,
    *,
    inputs: Sequence[str | TensorSpec] = (),
    dynamic: Sequence[str | DynamicDim] = (),
    context: int | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a model.

    `ref` is `zoo:NAME`, `file.py:factory`, `package.module:factory`, a Hugging Face folder, a `model.pt2`, or a module
    (then with `example`, the tensors of one call). `inputs` are `NAME:DTYPE:1x3x224x224` where nothing else says what
    the model takes; `dynamic` are `batch=1:8` or `INPUT.AXIS=LOW:HIGH`. `context` is how
    many tokens a language model's cache holds.

    Raises `UnknownName`, `InvalidInput`, `UnsupportedModel` or `ToolchainMissing`.
    """
    options = LoadOptions(
        inputs=tuple(parse_input(i) if isinstance(i, str) else i for i in inputs),
        dynamic=tuple(parse_dynamic(d) if isinstance(d, str) else d for d in dynamic),
        context=context,
        trust_remote_code=trust_remote_code,
    )
    if isinstance(ref, nn.Module):
        loaded = with_prompts(Loaded(module=ref, example=example))
        return make_model(ModelSource(kind="module", ref=type(ref).__name__), loaded, options)
    source = parse_source(ref)
    loaded = registry.load(SOURCES, source.kind).load(source.ref, options)
    return make_model(source, with_prompts(loaded), options)


def parse_source(ref: str) -> ModelSource:
    """Tell by its form what kind of source `ref` is; nothing is opened but the file system looked at."""
    if ref.startswith("zoo:"):
        return ModelSource(kind="zoo", ref=ref.removeprefix("zoo:"))
    if ref.endswith(".pt2"):
        return ModelSource(kind="pt2", ref=ref)
    if ref and os.path.isfile(os.path.join(ref, DISTILLED)):
        return ModelSource(kind="distilled", ref=ref)
    if ref and os.path.isfile(os.path.join(ref, REWRITTEN)):
        return ModelSource(kind="rewritten", ref=ref)
    if ref and os.path.isdir(ref):
        return ModelSource(kind="huggingface", ref=ref)
    if ":" in ref:
        return ModelSource(kind="python", ref=ref)
    if ref in registry.names(ZOO):
        raise UnknownName(f"no file or folder '{ref}'. Did you mean 'zoo:{ref}'?")
    if ref.endswith((".pt", ".pth", ".bin", ".safetensors", ".onnx")):
        raise InvalidInput(
            f"'{ref}' holds weights, not a model: give 'your_file.py:factory' whose factory builds the module and "
            "loads them, a Hugging Face folder, or a .pt2 written by torch.export.save"
        )
    raise UnknownName(
        f"no model '{ref}': give zoo:NAME, file.py:factory, package.module:factory, a Hugging Face folder or model.pt2"
    )


def parse_input(text: str) -> TensorSpec:
    """`pixels:float32:1x3x224x224` as a `TensorSpec`."""
    try:
        name, dtype, shape = text.split(":")
        sizes = tuple(int(size) for size in shape.split("x"))
        if not name.isidentifier() or dtype not in DTYPES or min(sizes) < 1:
            raise ValueError
    except ValueError:
        raise InvalidInput(
            f"input '{text}' is not NAME:DTYPE:SHAPE, for example pixels:float32:1x3x224x224; "
            f"dtypes are {', '.join(DTYPES)}"
        ) from None
    return TensorSpec(name=name, dtype=dtype, shape=sizes)


def parse_dynamic(text: str) -> DynamicDim:
    """`batch=1:8`, `input_ids.1=1:256`, or `batch=1,4,8` for these sizes only, as a `DynamicDim`."""
    try:
        name, _, limits = text.partition("=")
        if not name:
            raise ValueError
        if ":" not in limits:
            sizes = tuple(sorted({int(size) for size in limits.split(",")}))
            return DynamicDim(name=name, minimum=sizes[0], maximum=sizes[-1], sizes=sizes)
        low, high = limits.split(":")
        return DynamicDim(name=name, minimum=int(low), maximum=int(high))
    except ValueError as error:
        detail = f" ({error})" if "dynamic dimension" in str(error) else ""
        raise InvalidInput(
            f"dynamic size '{text}' is not NAME=LOW:HIGH or NAME=SIZE,SIZE, for example batch=1:8 or batch=1,8{detail}"
        ) from None
