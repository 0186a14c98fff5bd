"""8-bit weights; activations are scaled to 8 bits anew at every call, so no samples are needed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import nn
from torch.export import ExportedProgram

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
from edgekit.graph import module_path, op_nodes
from edgekit.profile import DeviceProfile
from edgekit.types import Precision, TensorSpec


class Int8Dynamic(Pass, frozen=True, kw_only=True, tag="int8_dynamic"):
    """Linear layers and embeddings in int8, one scale per output channel of a linear layer.

    What transformer encoders need: their activations have rare large values that a fixed range cannot hold (static int8
    MiniLM falls to cosine 0.36). Convolutions stay float: runtimes have no fast dynamic kernels for them. Products with
    a matrix that is no layer's weight do too: they are often positions on their way into a sine, where 8 bits are noise
    (SAM with random weights: 11 dB became 29).
    """

    decides: ClassVar[Precision | None] = "int8-dynamic"
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()  # module paths, each with everything below it

    def reject(self, tensor: TensorSpec, device: DeviceProfile) -> str | None:
        """Only float matrices are quantised."""
        if is_below(tensor.name.rpartition(".")[0], self.keep_float):
            return "in keep_float"
        return None if len(tensor.shape) == 2 else "not a matrix: no dynamic int8 kernel takes it"

    def apply(self, model: CompressedModel, context: PassContext) -> CompressedModel:
        """Decide the scheme."""
        check_modules(self.keep_float, model)
        layers = nn.Linear | nn.MultiheadAttention | nn.Embedding | nn.Conv1d | nn.Conv2d
        changes = [
            record(self, spec, tensor, self.reject(spec, context.device), "int8", tensor.numel())
            for _, spec, tensor in layer_parameters(model.model.module, layers)
        ]
        scheme = Quantization(
            scheme="dynamic",
            weight_dtype="int8",
            activation_dtype="uint8",
            per_channel=self.per_channel,
            keep_float=self.keep_float,
            float_products=tuple(dict.fromkeys(_bare_products(context.trace(model)))),
        )
        return replace(model, changes=(*model.changes, *changes), quantization=scheme)


def _bare_products(program: ExportedProgram) -> list[str]:
    """Modules that multiply with a constant matrix by themselves, not through a linear layer."""
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return [
        module_path(node)
        for node in op_nodes(program.graph)
        if str(node.target).startswith(("aten.matmul.", "aten.mm.", "aten.bmm."))
        and any(source.name in stored for source in node.all_input_nodes)
    ]


PASS = Int8Dynamic
