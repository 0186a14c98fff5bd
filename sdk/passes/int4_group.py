"""4-bit weights in groups that share a scale; activations are scaled to 8 bits anew at every call (8da4w)."""

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

SCALE_BYTES = 2  # one bfloat16 a group


class Int4Group(Pass, frozen=True, kw_only=True, tag="int4_group"):
    """Linear layers in int4, for language models, whose speed is that of reading the weights.

    Embeddings stay float: a lookup reads one row, and runtimes have no int4 table.
    """

    decides: ClassVar[Precision | None] = "w4a8"
    group_size: int = 32  # weights per scale along the input axis
    keep_float: tuple[str, ...] = ()  # module paths, each with everything below it

    def reject(self, tensor: TensorSpec, device: DeviceProfile) -> str | None:
        """Only matrices whose rows are whole groups, and that nobody wants in float."""
        if is_below(tensor.name.rpartition(".")[0], self.keep_float):
            return "in keep_float"
        if len(tensor.shape) != 2:
            return "not a matrix: no int4 kernel takes it"
        width = tensor.shape[1]
        if isinstance(width, int) and width % self.group_size:
            return f"its {width} columns are no multiple of the group of {self.group_size}"
        return None

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """Decide the scheme."""
        check_modules(self.keep_float, model)
        layers = nn.Linear | nn.MultiheadAttention | nn.Embedding
        changes = []
        for layer, spec, tensor in layer_parameters(model.model.module, layers):
            looked_up = "a lookup, not a product" if isinstance(layer, nn.Embedding) else None
            reason = looked_up or self.reject(spec, context.device)
            size = tensor.numel() // 2 + SCALE_BYTES * (tensor.numel() // self.group_size)
            changes.append(record(self, spec, tensor, reason, f"int4 in groups of {self.group_size}", size))
        scheme = Quantization(
            scheme="dynamic",
            weight_dtype="int4",
            activation_dtype="int8",
            group_size=self.group_size,
            keep_float=self.keep_float,
        )
        return replace(model, changes=(*model.changes, *changes), quantization=scheme)


PASS = Int4Group
