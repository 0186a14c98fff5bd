"""Store bf16 weights in a third of the bytes of float32, with every bit, and compute as fp32 does."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgekit.codec import SMALLEST, WORTH, NoGain, encode
from edgekit.compression import CompressedModel, Pass, PassContext, record, tensor_spec
from edgekit.errors import UnsupportedModel
from edgekit.profile import DeviceProfile
from edgekit.types import Change, Precision, TensorSpec


class Lossless(Pass, frozen=True, kw_only=True, tag="lossless"):
    """Code the weights that are bf16 values, as those of a checkpoint that was saved in bfloat16.

    The model stays as it is, and so does the file that its runtime gets: it is decoded when a bundle is opened.
    """

    decides: ClassVar[Precision | None] = "lossless"
    codec: str = "auto"  # a format of `edgekit list formats`

    def reject(self, tensor: TensorSpec, device: DeviceProfile) -> str | None:
        """Other dtypes are stored as they are."""
        return None if tensor.dtype == "float32" else f"{tensor.dtype}: only float32 weights can be bf16 values"

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """Code every tensor once to see what it gains. Raises `UnsupportedModel` where the model has little to gain."""
        changes: list[Change] = []
        weights = bf16_values = 0
        module = model.model.module
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            spec = tensor_spec(name, tensor)
            reason, after, size = self.reject(spec, context.device), "", 0
            if reason is None:
                words = np.ascontiguousarray(tensor.numpy(force=True)).reshape(-1).view(np.uint32)
                weights += words.size
                bf16_values += (count := words.size - int(np.count_nonzero(words & 0xFFFF)))
                try:
                    after, size = self._stored(words, count)
                except NoGain as found:
                    reason = str(found)
            changes.append(record(self, spec, tensor, reason, after, size))
        stored, size = (sum(getattr(change, side) for change in changes) for side in ("bytes_after", "bytes_before"))
        if stored > WORTH * size:
            raise UnsupportedModel(
                f"'{model.model.name}' has little to gain from lossless: it would take {stored / max(size, 1):.0%} of "
                f"its bytes. {bf16_values / max(weights, 1):.1%} of its {weights} weights are bf16 values, and tensors "
                f"of other values or fewer than {SMALLEST} stay as they are. Take --precision fp32, or export a "
                "checkpoint that was saved in bfloat16"
            )
        return replace(model, changes=(*model.changes, *changes), codec=self.codec)

    def _stored(self, words: NDArray[np.uint32], bf16_values: int) -> tuple[str, int]:
        """How a tensor is stored, and in how many bytes. Raises `NoGain` with the reason to keep it as it is."""
        if bf16_values < words.size:
            raise NoGain("not bf16 values")
        coded = encode((words >> 16).astype(np.uint16), self.codec)
        return f"bfloat16 in {coded.codec}", sum(part.nbytes for part in coded.parts.values())


PASS = Lossless
