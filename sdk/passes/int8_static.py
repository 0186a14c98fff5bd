"""8-bit weights and activations with ranges fixed by calibration (w8a8, QDQ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgekit.compression import (
    CompressedModel,
    Pass,
    PassContext,
    Quantization,
    WeightLayer,
    check_modules,
    is_below,
    layer_parameters,
    need_calibration,
    record,
    run_hooked,
    weight_layers,
)
from edgekit.dataset import Dataset
from edgekit.profile import DeviceProfile
from edgekit.types import Precision, TensorSpec

OBSERVED = 8  # samples that tell a dead layer from a living one


class Int8Static(Pass, frozen=True, kw_only=True, tag="int8_static"):
    """Symmetric int8 weights, one scale per output channel; asymmetric 8-bit activations, one scale per tensor.

    `keep_float` is for layers at the front of the model. onnxruntime requantises a float convolution between int8 ones
    per tensor when it loads the file (measured on efficientnet_lite0: 19.3 dB became 8.1), which `verify` catches.

    uint8 activations run on the dot-product instructions of x86 and Arm alike; int8 ones are up to 1.8 times slower in
    onnxruntime on x86.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference
    (arXiv 1712.05877), equation 1; per-channel weights as in Krishnamoorthi (arXiv 1806.08342), section 3.1.
    """

    decides: ClassVar[Precision | None] = "int8"
    needs_samples: ClassVar[bool] = True
    activation_dtype: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()  # module paths, each with everything below it

    def reject(self, tensor: TensorSpec, device: DeviceProfile) -> str | None:
        """Only float matrices and kernels are quantised; biases are added in int32 or float."""
        if is_below(tensor.name.rpartition(".")[0], self.keep_float):
            return "in keep_float"
        return None if len(tensor.shape) >= 2 else "one-dimensional: added at accumulator precision"

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """Decide the scheme; the exporter finds the ranges with its own observers and kernels in mind."""
        data = need_calibration(self, context)
        check_modules(self.keep_float, model)
        axis = "per_channel axis 0" if self.per_channel else "per_tensor"
        changes = [
            record(self, spec, tensor, self.reject(spec, context.device), f"int8 {axis}", tensor.numel())
            for _, spec, tensor in layer_parameters(model.model.module, WeightLayer | nn.MultiheadAttention)
        ]
        scheme = Quantization(
            scheme="static",
            weight_dtype="int8",
            activation_dtype=self.activation_dtype,
            per_channel=self.per_channel,
            keep_float=self.keep_float,
        )
        warnings = (*model.warnings, *_dead_observers(model.model.module, data))
        return replace(model, changes=(*model.changes, *changes), quantization=scheme, warnings=warnings)


def _dead_observers(module: nn.Module, data: Dataset) -> list[str]:
    """Inputs and layer outputs that never change over the samples: their range says nothing about real use."""
    dead = [n for n in data.samples[0] if len({float(v) for s in data.samples for v in (s[n].min(), s[n].max())}) == 1]
    seen: dict[str, set[float]] = {}

    def observe(path: str) -> Callable[..., None]:
        return lambda layer, inputs, output: seen.setdefault(path, set()).update(
            (float(output.min()), float(output.max()))
        )

    hooks = {path: observe(path) for path, _ in weight_layers(module)}
    for sample in data.samples[:OBSERVED]:
        run_hooked(module, hooks, {name: torch.from_numpy(array) for name, array in sample.items()})
    dead += [path for path, ends in seen.items() if len(ends) == 1]
    return [
        f"'{name}' never changes over the calibration samples: its range means nothing, give others" for name in dead
    ]


def round_weight(layer: WeightLayer, per_channel: bool) -> Tensor:
    """The layer's weight on the symmetric int8 grid, `[-127, 127] * max|w| / 127`, per output channel or as a whole."""
    weight = layer.weight.detach()
    axis = (1 if isinstance(layer, nn.ConvTranspose2d) else 0) if per_channel else None
    largest = weight.abs().amax(dim=[d for d in range(weight.dim()) if d != axis], keepdim=True)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return torch.round(weight / scale) * scale


PASS = Int8Static
