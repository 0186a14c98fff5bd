"""Apply a plan to a model: which tensors get which numbers, and what the exporter must realise.

A pass edits the float module, or decides how weights and activations are to be quantised, or both. The decision is
plain data (`Quantization`); every exporter realises it with its own toolchain, so one plan serves all formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.dataset import Dataset
from edgekit.errors import InvalidInput, unknown_name
from edgekit.graph import capture
from edgekit.layered import copied
from edgekit.model import Model
from edgekit.profile import DeviceProfile
from edgekit.types import Change, DType, Precision, TensorSpec, Value

PASSES = "edgekit.passes"
WeightLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d
Progress = Callable[[str], None]  # called with a short sentence when a step begins


def silent(step: str) -> None:
    """A `Progress` that shows nothing."""


def is_below(path: str, modules: Sequence[str]) -> bool:
    """Whether the module at `path` is one of `modules` or inside of one."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


class Quantization(Value, frozen=True, kw_only=True):
    """The numbers an exporter must give weights and activations.

    static: activations get fixed ranges from calibration samples. dynamic: their range is found at every call.
    weight_only: weights are stored in fewer bits and computed with in float.
    cast: weights and activations are the same float type, inputs and outputs stay float32.
    """

    scheme: Literal["static", "dynamic", "weight_only", "cast"]
    weight_dtype: Literal["int4", "int8", "float16"]
    activation_dtype: DType  # a runtime whose kernels take the other sign of 8 bits may use that
    per_channel: bool = True  # one weight scale per output channel
    group_size: int | None = None  # weights per scale along the input axis, where finer than a channel
    keep_float: tuple[str, ...] = ()  # paths of modules that stay float, each with everything below it
    float_products: tuple[str, ...] = ()  # modules whose own ops stay float, and not those of the modules below

    def stays_float(self, path: str) -> bool:
        """Whether the ops of the module at `path` keep their float numbers."""
        return path in self.float_products or is_below(path, self.keep_float)


@dataclass(frozen=True, kw_only=True)
class CompressedModel:
    """A model, the decisions made about it, and one `Change` per tensor and pass."""

    model: Model
    changes: tuple[Change, ...] = ()
    quantization: Quantization | None = None
    codec: str | None = None  # of `edgekit.formats`, or `auto`: how the exported file's bf16 weights are stored
    calibration: Dataset | None = None
    warnings: tuple[str, ...] = ()
    output_of: Mapping[str, str] = field(
        default_factory=dict
    )  # module -> the reference's module whose output it returns
    reference: Model | None = (
        None  # that answers the same, with modules as in `model`; None: the model before all passes
    )


@dataclass(frozen=True, kw_only=True)
class PassContext:
    """What a pass may look at besides the model."""

    device: DeviceProfile
    calibration: Dataset | None
    progress: Progress = silent
    traces: dict[nn.Module, ExportedProgram] = field(default_factory=dict)  # that were made already

    def trace(self, model: CompressedModel) -> ExportedProgram:
        """The trace of the model that a pass got: passes before it may have changed the ops."""
        module = model.model.module
        if module not in self.traces:
            self.traces[module] = capture(model.model)
        return self.traces[module]


class Pass(Value, frozen=True, kw_only=True, tag_field="pass"):
    """One step of a plan. Its fields are its options; a module in `sdk/passes/` defines one and calls it `PASS`."""

    decides: ClassVar[Precision | None] = None  # the precision a model has after this pass, where it sets one
    needs_samples: ClassVar[bool] = False  # calibration samples

    def reject(self, tensor: TensorSpec, device: DeviceProfile) -> str | None:
        """Why this tensor stays as it is, or None when the pass changes it."""
        return None

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """The model after this pass, with a `Change` for every tensor it looked at."""
        raise NotImplementedError


def compress(
    model: Model,
    passes: Sequence[Pass],
    device: DeviceProfile,
    program: ExportedProgram,
    *,
    calibration: Dataset | None = None,
    progress: Progress = silent,
) -> CompressedModel:
    """Run a plan's passes in order on copies of the model; `program` is its trace, and it is left as it was."""
    compressed = CompressedModel(model=model, calibration=calibration)
    traces = {model.module: program}
    context = PassContext(device=device, calibration=calibration, progress=progress, traces=traces)
    for step in passes:
        progress(f"pass {pass_name(step)}")
        compressed = step.apply(compressed, context)
    return compressed


def pass_name(step: Pass) -> str:
    """The public name of a pass: its file name."""
    return str(type(step).__struct_config__.tag)


def with_module(model: CompressedModel, edit: Callable[[nn.Module], None]) -> CompressedModel:
    """The model with a copy of its module after `edit` changed the copy in place."""
    module = copied(model.model.module)
    edit(module)
    return replace(model, model=replace(model.model, module=module))


def weight_layers(module: nn.Module) -> Iterator[tuple[str, WeightLayer]]:
    """Path and layer of every layer whose weight multiplies activations: convolutions and linear layers."""
    for path, layer in module.named_modules():
        if isinstance(layer, WeightLayer):
            yield path, layer


def layer_parameters(
    module: nn.Module, kinds: type[nn.Module] | UnionType
) -> Iterator[tuple[nn.Module, TensorSpec, Tensor]]:
    """Layer, spec and value of every parameter that the layers of these kinds hold themselves.

    A MultiheadAttention does hold its in-projection; only its out-projection is a Linear.
    """
    for path, layer in module.named_modules():
        if isinstance(layer, kinds):
            for name, tensor in layer.named_parameters(recurse=False):
                yield layer, tensor_spec(f"{path}.{name}".lstrip("."), tensor), tensor


def run_hooked(
    module: nn.Module, hooks: Mapping[str, Callable[..., Tensor | None]], feeds: Mapping[str, Tensor]
) -> None:
    """Run the module once with a forward hook on each named layer; the hooks come off whatever happens."""
    handles = [module.get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        with torch.no_grad():
            module(**feeds)
    finally:
        for handle in handles:
            handle.remove()


def record(step: Pass, tensor: TensorSpec, stored: Tensor, reason: str | None, after: str, bytes_after: int) -> Change:
    """The `Change` of one tensor; with a `reason` it was kept."""
    size, dtype = stored.numel() * stored.element_size(), str(stored.dtype).removeprefix("torch.")
    return Change(
        tensor=tensor.name,
        step=pass_name(step),
        before=dtype,
        after=dtype if reason else after,
        bytes_before=size,
        bytes_after=size if reason else bytes_after,
        reason=reason,
    )


def tensor_spec(name: str, tensor: Tensor) -> TensorSpec:
    """The spec of a parameter."""
    return TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))  # type: ignore[arg-type]


def check_modules(paths: Sequence[str], model: CompressedModel) -> None:
    """Raise `UnknownName` for a path that is no module of the model."""
    known = [path for path, _ in model.model.module.named_modules() if path]
    if wrong := [path for path in paths if path not in known]:
        raise unknown_name("module of this model", wrong[0], known)


def need_calibration(step: Pass, context: PassContext) -> Dataset:
    """The calibration samples, or the error that says how to give some."""
    if context.calibration is None or not context.calibration.samples:
        raise InvalidInput(
            f"{pass_name(step)} sets activation ranges from real inputs and has none: add --calibration with a folder "
            "of images, a file.npz with one array per input, or builtin:NAME; or take --precision int8-dynamic, which "
            "needs none"
        )
    return context.calibration
