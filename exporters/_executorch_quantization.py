"""Realise a `Quantization` in a traced graph with torchao: static and dynamic int8 (PT2E), int4 groups (8da4w)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from edgekit.compression import Progress, Quantization
from edgekit.errors import UnsupportedModel
from edgekit.exporters._executorch_graph import aten
from edgekit.exporting import ExportJob
from edgekit.graph import module_path
from edgekit.quiet import quiet

XNNPACK_GROUP = 32  # the weights that share a scale are a multiple of this


def quantize(module: GraphModule, job: ExportJob, float_answers: bool, progress: Progress) -> GraphModule:
    """The graph with the numbers that were decided. `module` is used up."""
    scheme = job.quantization
    if scheme is None:
        return module
    if scheme.weight_dtype == "int4":
        progress("quantise weights to int4")
        return _quantize_int4(module, scheme)
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from edgekit.exporters._executorch_quantizer import DynamicQuantizer, StaticQuantizer

    quantizer = StaticQuantizer(scheme, float_answers) if scheme.scheme == "static" else DynamicQuantizer(scheme)
    with quiet(), torch.no_grad():
        prepared = prepare_pt2e(module, quantizer)
    with quiet(), torch.no_grad():
        for feeds in _feeds(job, progress):
            prepared(**feeds)
        converted: GraphModule = convert_pt2e(prepared)
    return converted


def _feeds(job: ExportJob, progress: Progress) -> Iterator[dict[str, torch.Tensor]]:
    """What the observers are to see: samples where activations have fixed ranges; else any input, for the weights."""
    if job.quantization and job.quantization.scheme == "dynamic":
        progress("quantise weights to int8")
        yield job.program.example_inputs[1]
        return
    if not job.calibration:
        raise UnsupportedModel("static quantisation without calibration samples")
    progress(f"calibrate on {len(job.calibration)} samples")
    for sample in job.calibration:
        yield {name: torch.from_numpy(array) for name, array in sample.items()}


def _quantize_int4(module: GraphModule, scheme: Quantization) -> GraphModule:
    """Linear layers with int4 weights, a scale for every `group_size` of them, and int8 inputs scaled at every call.

    torchao edits modules, so each linear op becomes one. A layer whose width is no multiple of the group stays float.
    """
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    from edgekit.exporters._executorch_quantizer import has_kernel

    group = scheme.group_size
    if group is not None and group % XNNPACK_GROUP:
        raise UnsupportedModel(
            f"group_size {group} was asked for, and XNNPACK takes multiples of {XNNPACK_GROUP}: set group_size to one"
        )
    layers: dict[str, nn.Module] = {}
    for node in module.graph.find_nodes(op="call_function", target=aten.linear.default):
        width = node.args[1].meta["val"].shape[1]
        if scheme.stays_float(module_path(node)) or not has_kernel(node) or (group is not None and width % group):
            continue
        name = f"{module_path(node).replace('.', '_')}_linear{len(layers)}"
        layers[name] = _as_layer(module, node, name)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    granularity = PerAxis(0) if group is None else PerGroup(group)
    int4: Any = getattr(torch, "int4")  # noqa: B009  torch's stubs do not know it
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=int4, weight_granularity=granularity)
    with quiet(), torch.no_grad():
        quantize_(module, config, filter_fn=lambda layer, name: layer in layers.values())
    return module


def _as_layer(module: GraphModule, node: Node, name: str) -> nn.Linear:
    """Put a module in the place of a linear op."""
    source, *constants = node.args
    tensors = [_constant(module, str(constant.target)) for constant in constants if constant is not None]  # type: ignore[union-attr]
    height, width = tensors[0].shape
    layer = nn.Linear(width, height, bias=len(tensors) > 1, device="meta")
    for slot, tensor in zip(("weight", "bias"), tensors, strict=False):
        setattr(layer, slot, nn.Parameter(tensor.detach(), requires_grad=False))
    module.add_submodule(name, layer)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(name, (source,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)
    return layer


def _constant(module: GraphModule, path: str) -> torch.Tensor:
    owner, _, name = path.rpartition(".")
    found: torch.Tensor = getattr(module.get_submodule(owner), name)
    return found
