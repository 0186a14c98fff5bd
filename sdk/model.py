"""A PyTorch model as the pipeline sees it: evaluation mode, finite weights, named inputs and outputs.

Loaders in `sdk/sources/` return a `Loaded`; `make_model` does what is the same for all of them.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from edgekit.errors import InvalidInput, UnsupportedModel
from edgekit.generation import Generation
from edgekit.processing import Arrays, Assets, ImagePreprocess, Postprocess, Preprocess, logits_output
from edgekit.segmentation import Segmentation
from edgekit.types import DTYPES, DType, DynamicDim, ModelSource, TensorSpec

Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a loader knows of a model beyond its module; everything but the module is optional."""

    module: nn.Module
    example: Example | None = None
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    assets: Assets = field(default_factory=dict)
    calibration: str | None = None  # data sets in the grammar of `edgekit.dataset`
    evaluation: str | None = None
    generation: Generation | None = None  # of a language model
    segmentation: Segmentation | None = None  # of a promptable model, which is exported as two graphs
    dynamic: tuple[DynamicDim, ...] = ()  # unless the user names some
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What the user said about loading."""

    inputs: tuple[TensorSpec, ...] = ()
    dynamic: tuple[DynamicDim, ...] = ()
    trust_remote_code: bool = False
    context: int | None = None  # places in a language model's KV cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A PyTorch module in evaluation mode with named inputs and outputs."""

    source: ModelSource
    module: nn.Module
    example: Mapping[str, Tensor]  # keyword arguments of one call
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic: tuple[DynamicDim, ...] = ()
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    assets: Assets = field(default_factory=dict)
    calibration: str | None = None
    evaluation: str | None = None
    generation: Generation | None = None
    segmentation: Segmentation | None = None
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name for folders and tables."""
        return self.source.name

    @property
    def example_arrays(self) -> Arrays:
        """The example inputs as numpy arrays."""
        return {name: tensor.numpy() for name, tensor in self.example.items()}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all distinct parameters and buffers."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())

    @property
    def logits(self) -> str | None:
        """The output whose argmax is the answer, where the model is a classifier."""
        return logits_output(self.postprocess)

    def __call__(self, arrays: Arrays) -> Arrays:
        """Run PyTorch on named arrays."""
        with torch.no_grad():
            result = self.module(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        return {name: tensor.numpy() for name, tensor in name_outputs(result).items()}


def with_names(module_type: type[nn.Module], names: Sequence[str]) -> type[nn.Module]:
    """`module_type`, whose forward takes `**inputs`, with these names in its signature.

    torch.export matches dynamic sizes with the signature, and cannot with `**inputs` (torch 2.13).
    """

    def forward(self: nn.Module, *args: Tensor, **inputs: Tensor) -> Any:
        return module_type.forward(self, **dict(zip(names, args, strict=False)), **inputs)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type(module_type.__name__, (module_type,), {"forward": forward})


def name_outputs(result: Any, prefix: str = "") -> dict[str, Tensor]:
    """Flatten what a module returned into named tensors: keys of mappings, positions of sequences."""
    if isinstance(result, Tensor):
        return {prefix or "output": result}
    if result is None:
        return {}
    if isinstance(result, Mapping):
        items = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, Sequence) and not isinstance(result, str):
        items = [(f"output_{i}" if not prefix else str(i), value) for i, value in enumerate(result)]
    else:
        raise UnsupportedModel(
            f"the model returns a {type(result).__name__}; it must return tensors, or tuples, lists or dicts of them"
        )
    named: dict[str, Tensor] = {}
    for key, value in items:
        inner = name_outputs(value, f"{prefix}.{key}" if prefix else key)
        if twice := named.keys() & inner.keys():
            raise UnsupportedModel(f"the model returns two outputs of the name '{min(twice)}': rename one")
        named |= inner
    return named


def weights_sha256(module: nn.Module, *, outside: str | None = None) -> str:
    """Hash of names, dtypes, shapes and bytes of all parameters and buffers, in name order.

    With `outside`, of those that are not in the module at that path.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_weights(module).items()):
        if outside is not None and name.startswith(f"{outside}."):
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _weights(module: nn.Module) -> dict[str, Any]:
    """All parameters and buffers by name, those outside the state dict too."""
    return {**module.state_dict(), **dict(module.named_buffers(remove_duplicate=False))}


def make_model(source: ModelSource, loaded: Loaded, options: LoadOptions) -> Model:
    """Check a loaded module, learn its inputs and outputs from one run, and hash its weights."""
    module = loaded.module
    warnings = loaded.warnings
    if options.context is not None and options.context != (loaded.generation and loaded.generation.context):
        fixed = f"has a context of {loaded.generation.context}" if loaded.generation else "is no language model"
        raise InvalidInput(
            f"--context {options.context} is for folders with a language model, and '{source.ref}' {fixed}"
        )
    if any(part.training for part in module.modules()):
        module.eval()
        warnings += ("the module was in training mode; it is exported in evaluation mode (module.eval())",)
    module.requires_grad_(False)
    _check_weights(module)
    dynamic = options.dynamic or loaded.dynamic
    if len(dynamic) > 1 and any(dim.sizes for dim in dynamic):
        raise InvalidInput(
            f"--dynamic {', '.join(map(str, dynamic))}: a list of sizes stands alone; give limits LOW:HIGH, or one list"
        )
    example = _expand(_example(loaded, options), dynamic)
    outputs = _run_once(module, example)
    inputs = tuple(_spec(name, tensor, dynamic, loaded.preprocess) for name, tensor in example.items())
    return Model(
        source=msgspec.structs.replace(source, sha256=weights_sha256(module)),
        module=module,
        example=example,
        inputs=inputs,
        outputs=_output_specs(module, example, outputs, dynamic),
        dynamic=dynamic,
        preprocess=loaded.preprocess,
        postprocess=loaded.postprocess,
        assets=loaded.assets,
        calibration=loaded.calibration,
        evaluation=loaded.evaluation,
        generation=loaded.generation,
        segmentation=loaded.segmentation,
        warnings=warnings,
    )


def _check_weights(module: nn.Module) -> None:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise UnsupportedModel(f"state_dict entry '{name}' is a {type(tensor).__name__}, not a tensor")
        if tensor.is_meta:
            raise UnsupportedModel(f"weight '{name}' is on the meta device, which holds no values: load the weights")
        if tensor.is_complex():
            raise UnsupportedModel(f"weight '{name}' is {tensor.dtype}: runtimes have no complex numbers")
        if not tensor.is_floating_point():
            continue
        wrong = ~torch.isfinite(tensor)
        if name not in parameters:
            wrong &= ~torch.isneginf(tensor)  # an attention mask
        if bad := int(wrong.sum()):
            raise UnsupportedModel(
                f"weight '{name}' holds NaN or Inf in {bad} of {tensor.numel()} elements: "
                "the checkpoint is damaged or training diverged; load another one"
            )


def _example(loaded: Loaded, options: LoadOptions) -> dict[str, Tensor]:
    if options.inputs:
        generator = torch.Generator().manual_seed(0)
        return {spec.name: _tensor(spec, generator) for spec in options.inputs}
    example = loaded.example
    if example is None:
        raise InvalidInput(
            "nothing says what the model takes: let the factory return (module, example_inputs), or add "
            "--input NAME:DTYPE:SHAPE, for example --input pixels:float32:1x3x224x224"
        )
    if isinstance(example, Mapping):
        named = dict(example)
    else:
        tensors = (example,) if isinstance(example, Tensor) else example
        if not isinstance(tensors, list | tuple):
            raise UnsupportedModel(
                f"the example is a {type(example).__name__}; it must be a tensor, or a tuple or dict of tensors"
            )
        named = dict(zip(_argument_names(loaded.module, len(tensors)), tensors, strict=True))
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise UnsupportedModel(f"example input '{name}' is a {type(tensor).__name__}; every input must be a tensor")
        if tensor.is_complex():
            raise UnsupportedModel(f"example input '{name}' is {tensor.dtype}; pass real and imaginary parts apart")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _argument_names(module: nn.Module, count: int) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(names) < count:
        raise UnsupportedModel(
            f"{type(module).__name__}.forward names {len(names)} argument(s) and the example has {count}; give every "
            "input a name of its own in forward (no *args)"
        )
    return names[:count]


def _tensor(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    shape = [int(size) for size in spec.shape]
    try:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.ones(shape, dtype=dtype)
    except (RuntimeError, TypeError) as error:  # more elements than memory or 64 bits hold
        raise InvalidInput(f"input '{spec}' is too large to make") from error


def _expand(example: dict[str, Tensor], dynamic: tuple[DynamicDim, ...]) -> dict[str, Tensor]:
    """Repeat examples along dynamic axes, since torch.export takes a size of 1 for a constant."""
    taken: dict[tuple[str, int], str] = {}
    for dim in dynamic:
        axes = dynamic_axes(dim, example)
        if not axes:
            raise InvalidInput(
                f"dynamic size '{dim.name}' fits no input: use batch, or INPUT.AXIS with one of {', '.join(example)}"
            )
        for name, axis in axes:
            if (name, axis) in taken:
                raise InvalidInput(f"'{taken[name, axis]}' and '{dim.name}' both size axis {axis} of input '{name}'")
            if not example[name].shape[axis]:
                raise InvalidInput(f"the example of input '{name}' is empty along axis {axis}: give at least one")
            taken[name, axis] = dim.name
            tensor, least = example[name], max(2, dim.minimum)
            if tensor.shape[axis] < least:
                repeats = [1] * tensor.dim()
                repeats[axis] = -(-least // tensor.shape[axis])
                tensor = tensor.repeat(repeats)
            example[name] = tensor.narrow(axis, 0, min(tensor.shape[axis], dim.maximum)).contiguous()
    return example


def dynamic_axes(dim: DynamicDim, example: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """The (input, axis) pairs a dynamic size stands for: `batch` is axis 0 of all inputs."""
    if dim.name == "batch":
        return [(name, 0) for name, tensor in example.items() if tensor.dim() > 0]
    name, _, axis = dim.name.rpartition(".")
    if name in example and axis.isdecimal() and int(axis) < example[name].dim():
        return [(name, int(axis))]
    if not name:  # a bare name such as `seq`: axis 1 of every [batch, seq] input of integers
        tokens = [(n, 1) for n, tensor in example.items() if tensor.dim() == 2 and not tensor.is_floating_point()]
        return tokens if dim.name == "seq" else []
    return []


def _spec(name: str, tensor: Tensor, dynamic: tuple[DynamicDim, ...], preprocess: Preprocess | None) -> TensorSpec:
    shape: list[int | str] = list(tensor.shape)
    for dim in dynamic:
        for target, axis in dynamic_axes(dim, {name: tensor}):
            if target == name:
                shape[axis] = dim.axis_name
    layout = preprocess.layout if isinstance(preprocess, ImagePreprocess) and preprocess.input == name else None
    return TensorSpec(name=name, dtype=_dtype(tensor), shape=tuple(shape), layout=layout)


def _output_specs(
    module: nn.Module, example: Mapping[str, Tensor], outputs: Mapping[str, Tensor], dynamic: tuple[DynamicDim, ...]
) -> tuple[TensorSpec, ...]:
    """An output axis is dynamic where it changes with an input's size."""
    shapes: dict[str, list[int | str]] = {name: list(tensor.shape) for name, tensor in outputs.items()}
    for dim in dynamic:
        other = dict(example)
        for name, axis in dynamic_axes(dim, example):
            size = example[name].shape[axis]
            index = torch.arange(size + 1 if size < dim.maximum else size - 1) % size
            other[name] = example[name].index_select(axis, index)
        for name, tensor in _run_once(module, other).items():
            for axis, (now, then) in enumerate(zip(outputs[name].shape, tensor.shape, strict=True)):
                if now != then:
                    shapes[name][axis] = dim.axis_name
    return tuple(TensorSpec(name=n, dtype=_dtype(t), shape=tuple(shapes[n])) for n, t in outputs.items())


def _dtype(tensor: Tensor) -> DType:
    name = str(tensor.dtype).removeprefix("torch.")
    for dtype in DTYPES:
        if dtype == name:
            return dtype
    raise UnsupportedModel(f"dtype {tensor.dtype} is not one that runtimes take: {', '.join(DTYPES)}")


def _run_once(module: nn.Module, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        with torch.no_grad():
            result = module(**example)
    except Exception as error:  # user code may raise anything
        shown = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in example.items())
        raise UnsupportedModel(
            f"the model fails on its own example inputs ({shown}): {type(error).__name__}: {error}"
        ) from error
    outputs = name_outputs(result)
    if not outputs:
        raise UnsupportedModel("the model returns no tensor")
    for name, tensor in outputs.items():
        if tensor.is_complex():
            raise UnsupportedModel(f"output '{name}' is {tensor.dtype}; return real and imaginary parts apart")
        if tensor.dtype == torch.bfloat16:
            raise UnsupportedModel(f"output '{name}' is torch.bfloat16, which numpy cannot hold: return .float()")
        if not np.isfinite(tensor.float().numpy()).all():
            raise UnsupportedModel(f"output '{name}' is not finite on the example inputs: nothing could be verified")
    return outputs
