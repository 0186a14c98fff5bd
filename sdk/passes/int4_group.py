"""4-bit weights of linear layers, a scale for every group of them; activations are scaled to 8 bits at every call."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import nn

from edgekit.compression import CompressedModel, Pass, PassContext, Quantization, record, tensor_spec
from edgekit.profile import DeviceProfile
from edgekit.types import Precision, TensorSpec

SCALE_BYTES = 2  # bfloat16, as runtimes keep the scales of groups


class Int4Group(Pass, frozen=True, kw_only=True, tag="int4_group"):
    """Linear layers in int4 (w4a8, also called 8da4w): for language models, whose speed is that of reading weights.

    Small groups follow the weights' spread along the input axis, which 16 levels for a whole row cannot.

    Source: Frantar et al., GPTQ (arXiv 2210.17323), section 4, for what groups are worth.
    """

    decides: ClassVar[Precision | None] = "w4a8"
    group_size: int = 32  # weights that share a scale, along the input axis
    keep_float: tuple[str, ...] = ()  # module paths

    def reject(self, tensor: TensorSpec, device: DeviceProfile) -> str | None:
        """Only matrices whose width is a whole number of groups."""
        if tensor.name.rpartition(".")[0] in self.keep_float:
            return "listed in keep_float"
        if len(tensor.shape) != 2:
            return "not a matrix: no int4 kernel takes it"
        width = int(tensor.shape[1])
        return f"its width {width} is no multiple of {self.group_size}" if width % self.group_size else None

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """Decide the scheme."""
        changes = []
        after = f"int4 group {self.group_size}"
        for path, layer in model.model.module.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            for name, tensor in layer.named_parameters(recurse=False):
                spec = tensor_spec(f"{path}.{name}".lstrip("."), tensor)
                size = tensor.numel() // 2 + tensor.numel() // self.group_size * SCALE_BYTES
                changes.append(record(self, spec, tensor, self.reject(spec, context.device), after, size))
        scheme = Quantization(
            scheme="dynamic",
            weight_dtype="int4",
            activation_dtype="int8",
            group_size=self.group_size,
            keep_float=self.keep_float,
        )
        return replace(model, changes=(*model.changes, *changes), quantization=scheme)


PASS = Int4Group
