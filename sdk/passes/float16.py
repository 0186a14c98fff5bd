"""Store weights and compute in float16; inputs and outputs stay float32."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from edgekit.compression import CompressedModel, Pass, PassContext, Quantization, record, tensor_spec
from edgekit.profile import DeviceProfile
from edgekit.types import Precision, TensorSpec

LARGEST = 65504.0  # IEEE 754 binary16


class Float16(Pass, frozen=True, kw_only=True, tag="float16"):
    """Cast every float tensor to half precision."""

    decides: ClassVar[Precision | None] = "fp16"

    def reject(self, tensor: TensorSpec, device: DeviceProfile) -> str | None:
        """Integers and booleans stay as they are."""
        return None if tensor.dtype in ("float32", "float64", "bfloat16") else f"{tensor.dtype} is not a wide float"

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """Decide the cast, and say which weights do not fit the range."""
        changes = []
        for name, tensor in model.model.module.state_dict().items():
            spec = tensor_spec(name, tensor)
            reason = self.reject(spec, context.device)
            after = "float16"
            if reason is None and tensor.numel() and float(tensor.abs().max()) > LARGEST:
                after = "float16, values beyond 65504 clamped to it"
            changes.append(record(self, spec, tensor, reason, after, tensor.numel() * 2))
        cast = Quantization(scheme="cast", weight_dtype="float16", activation_dtype="float16")
        return replace(model, changes=(*model.changes, *changes), quantization=cast)


PASS = Float16
