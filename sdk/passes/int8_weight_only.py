"""8-bit weights that are turned back into floats for computing: a smaller file with the least loss of accuracy."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import nn

from edgekit.compression import (
    CompressedModel,
    Pass,
    PassContext,
    Quantization,
    check_modules,
    is_below,
    layer_parameters,
    record,
)
from edgekit.profile import DeviceProfile
from edgekit.types import Precision, TensorSpec


class Int8WeightOnly(Pass, frozen=True, kw_only=True, tag="int8_weight_only"):
    """Convolutions, linear layers and embeddings in int8, one scale per output channel; activations stay float.

    A quarter of the size at float speed: for models that must be small and whose int8 arithmetic loses too much.
    """

    decides: ClassVar[Precision | None] = "int8-weight-only"
    keep_float: tuple[str, ...] = ()  # module paths, each with everything below it

    def reject(self, tensor: TensorSpec, device: DeviceProfile) -> str | None:
        """Only matrices and kernels are stored in 8 bits."""
        if is_below(tensor.name.rpartition(".")[0], self.keep_float):
            return "in keep_float"
        return None if len(tensor.shape) >= 2 else "one-dimensional: too small to matter"

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """Decide the scheme."""
        check_modules(self.keep_float, model)
        layers = nn.Linear | nn.MultiheadAttention | nn.Embedding | nn.Conv1d | nn.Conv2d
        changes = [
            record(self, spec, tensor, self.reject(spec, context.device), "int8 per_channel axis 0", tensor.numel())
            for _, spec, tensor in layer_parameters(model.model.module, layers)
        ]
        scheme = Quantization(
            scheme="weight_only", weight_dtype="int8", activation_dtype="float32", keep_float=self.keep_float
        )
        return replace(model, changes=(*model.changes, *changes), quantization=scheme)


PASS = Int8WeightOnly
