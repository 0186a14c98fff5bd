"""Where observers sit when a graph is quantised for XNNPACK: one rule per kind of op, in the order of the graph.

| ops | observed | why |
|---|---|---|
| convolution, linear | the input, the weight per output channel, and what leaves the clamp fused to it | one kernel |
| add, sub, mul | both inputs, and what leaves the fused clamp | one kernel |
| mean over H and W | input and output | the kernel rescales |
| pad, max pool, clamp, view, permute, slice | the output shares the input's scale | nothing is computed |
| cat | all inputs and the output share one scale | bytes are copied |
| everything else | nothing | XNNPACK has no integer kernel, so it stays float |

A clamp observed before it clips spends the 256 steps on values that are never seen: 6 dB instead of 16 on
efficientnet_lite0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver, PlaceholderObserver
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgekit.compression import Quantization
from edgekit.exporters._executorch_graph import (
    FUSED,
    PRODUCTS,
    aten,
    fused_clamp,
    is_float,
    is_zero_pad,
    mean_axes,
    only_reader,
)
from edgekit.graph import module_path
from edgekit.ranges import zero_on_step

KEY = "quantization_annotation"
VIEWS = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim,
         aten.squeeze.dims, aten.unsqueeze.default, aten.dropout.default, aten.contiguous.default,
         aten.clone.default)  # fmt: skip
PASSING = (*VIEWS, aten.max_pool2d.default, aten.permute.default, aten.transpose.int, aten.slice.Tensor)
SHARING = (*PASSING, *FUSED, aten.clamp.default)
SMALLEST_SCALE = 2**-12  # XNNPACK's requantisation holds no smaller ones


class OnStepObserver(MinMaxObserver):  # type: ignore[misc]
    """Observes a model's input, and widens its range until zero lies on a step instead of rounding the zero point."""

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point."""
        ends = zero_on_step(float(self.min_val), float(self.max_val), self.quant_max - self.quant_min)
        return self._calculate_qparams(*map(torch.tensor, ends))  # type: ignore[no-any-return]


def _activation(observer: type, **options: Any) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=observer.with_args(eps=SMALLEST_SCALE),  # type: ignore[attr-defined]
        **options,
    )


def _weight(per_channel: bool, axis: int = 0) -> QuantizationSpec:
    observer = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
        ch_axis=axis if per_channel else None,
        observer_or_fake_quant_ctr=observer.with_args(eps=SMALLEST_SCALE),
    )


ACTIVATION = _activation(MinMaxObserver)
INPUT = _activation(OnStepObserver)
DYNAMIC = _activation(PlaceholderObserver, is_dynamic=True)


class DynamicQuantizer(Quantizer):  # type: ignore[misc]
    """int8 weights of linear layers; their input is scaled at every call."""

    def __init__(self, scheme: Quantization) -> None:
        self.scheme = scheme

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the linear layers."""
        for node in model.graph.nodes:
            if node.target != aten.linear.default or self.scheme.stays_float(module_path(node)):
                continue
            if is_float(node) and has_kernel(node):
                annotate_dynamic(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing can be wrong with a linear layer."""


class StaticQuantizer(Quantizer):  # type: ignore[misc]
    """int8 weights and activations with ranges from calibration, after the table above.

    `float_answers`: a linear layer that makes an output of the model returns floats (its input is scaled at every
    call), since rounding the answer blurs it and nobody computes on it.
    """

    def __init__(self, scheme: Quantization, float_answers: bool = True) -> None:
        self.scheme, self.per_channel, self.float_answers = scheme, scheme.per_channel, float_answers

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Numbers in sums and products become tensors, which the kernels take."""
        for node in model.graph.nodes:
            if node.target in BINARY and is_float(node):
                _lift_numbers(model, node)
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Apply the rules: first the ops that compute, then those that only pass values on."""
        nodes = [n for n in model.graph.nodes if is_float(n) and not self.scheme.stays_float(module_path(n))]
        for node in nodes:
            if (rule := COMPUTING.get(node.target)) is not None:
                rule(self, node)
        for node in reversed(nodes):
            _share_backwards(node)
        for node in nodes:
            _share(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """The rules fit XNNPACK by construction."""

    def product(self, node: Node) -> None:
        """A convolution or linear layer."""
        source, weight = _operands(node)
        if not is_float(source) or not has_kernel(node):
            return
        if node.target == aten.linear.default and self.float_answers and _is_answer(node) and self.per_channel:
            annotate_dynamic(node)
            return
        specs = {weight: self._weight(node)}
        if is_zero_pad(source) and only_reader(source) is node and node.target in PADDED:
            padded = source.args[0]  # the kernel pads with the zero point of what it reads
            _mark(source, {padded: observed(padded)})
        else:
            specs[source] = observed(source)
        _mark_with_clamp(node, specs)

    def _weight(self, node: Node) -> QuantizationSpec:
        """Output channels are on axis 0, of transposed convolutions on axis 1; grouped ones of these have one scale."""
        if node.target != aten.conv_transpose2d.input:
            return _weight(self.per_channel)
        groups = node.args[6] if len(node.args) > 6 else 1
        return _weight(self.per_channel and bool(groups == 1), axis=1)

    def binary(self, node: Node) -> None:
        """A sum, difference or product of two tensors."""
        sources = _operands(node)
        if all(is_float(source) for source in sources) and not node.kwargs:
            _mark_with_clamp(node, {source: observed(source) for source in sources})

    def mean(self, node: Node) -> None:
        """An average over height and width."""
        source, sizes = node.args[0], list(node.meta["val"].shape)
        if node.target == aten.mean.dim and mean_axes(node) != [2, 3]:
            return
        if is_float(source) and len(sizes) == 4 and sizes[2:] == [1, 1]:
            _mark(node, {source: observed(source)}, ACTIVATION)

    def cat(self, node: Node) -> None:
        """A concatenation: one scale for all."""
        sources: Any = node.args[0]
        first = sources[0]  # which may come again
        shared = SharedQuantizationSpec((first, node))
        _mark(node, dict.fromkeys(sources, shared) | {first: observed(first)}, shared)


PADDED = (aten.conv1d.default, aten.conv2d.default)
BINARY = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
COMPUTING: dict[Any, Callable[[StaticQuantizer, Node], None]] = {
    **dict.fromkeys(PRODUCTS, StaticQuantizer.product),
    **dict.fromkeys(BINARY, StaticQuantizer.binary),
    aten.mean.dim: StaticQuantizer.mean,
    aten.adaptive_avg_pool2d.default: StaticQuantizer.mean,
    aten.cat.default: StaticQuantizer.cat,
}


def observed(source: Any) -> QuantizationSpec:
    """How a tensor that an integer kernel reads is observed."""
    return INPUT if source.op == "placeholder" else ACTIVATION


def annotate_dynamic(node: Node) -> None:
    """A linear layer with int8 weights whose input is scaled at every call."""
    _mark(node, {node.args[0]: DYNAMIC, node.args[1]: _weight(per_channel=True)})


def has_kernel(node: Node) -> bool:
    """Whether XNNPACK has an integer kernel for a product: weight and bias are stored in the model, the input is not.

    An input made of constants alone, as the learned queries of a decoder are, stays outside its partitions.
    """
    source, *stored = node.args[:3]
    return all(operand is None or operand.op == "get_attr" for operand in stored) and _varies(source)  # type: ignore[union-attr]


def _varies(node: Any) -> bool:
    """Whether a tensor depends on an input of the model."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return True
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return False


def _mark(node: Node, inputs: dict[Any, Any], output: Any = None) -> None:
    node.meta[KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)


def _mark_with_clamp(node: Node, inputs: dict[Any, Any]) -> None:
    """Observe after the clamp where one is fused, and after the op where none is."""
    clamp = fused_clamp(node)
    _mark(node, inputs, ACTIVATION if clamp is None else None)
    if clamp is not None:
        _mark(clamp, {}, ACTIVATION)


def _share(node: Node) -> None:
    """Let an op that only passes values on keep the scale of the tensor it reads, where that one has a scale."""
    if node.target not in SHARING or KEY in node.meta:
        return
    source: Any = node.args[0]
    annotation = source.meta.get(KEY)
    if annotation is not None and annotation.output_qspec is not None:
        shared = SharedQuantizationSpec(source)
        _mark(node, {source: shared}, shared)


def _share_backwards(node: Node) -> None:
    """Let an op on a float tensor pass on integers when integers are all that its readers want."""
    source: Any = node.args[0] if node.args else None
    if node.target not in PASSING or KEY in node.meta or not isinstance(source, Node) or KEY in source.meta:
        return
    wanted = [reader.meta[KEY].input_qspec_map.get(node) if KEY in reader.meta else None for reader in node.users]
    if not wanted or not all(spec in (ACTIVATION, INPUT) for spec in wanted):
        return
    _mark(node, {source: observed(source)}, SharedQuantizationSpec((source, node)))


def _operands(node: Node) -> tuple[Any, Any]:
    """What the two sides of a product or a sum are; numbers only in sums of integers."""
    first, second = node.args[:2]
    return first, second


def _is_answer(node: Node) -> bool:
    """Whether a tensor is an output of the model and nothing else reads it; views do not count."""
    reader = only_reader(node)
    return reader is not None and (reader.op == "output" or (reader.target in VIEWS and _is_answer(reader)))


def _lift_numbers(model: GraphModule, node: Node) -> None:
    for slot, value in enumerate(node.args[:2]):
        if isinstance(value, int | float):
            name = f"_number_{node.name}_{slot}"
            model.register_buffer(name, torch.tensor(float(value)))
            with model.graph.inserting_before(node):
                constant = model.graph.get_attr(name)
            constant.meta["val"] = node.meta["val"].new_empty(())
            node.update_arg(slot, constant)
