"""From an `ExportedProgram` to a float flatbuffer through litert_torch, with every tensor named after its origin.

`litert_torch.convert` takes a module and traces it again; the functions it is made of take the trace we have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.errors import ToolchainMissing, UnsupportedModel, reason_of
from edgekit.exporters._tflite_file import require_kernels
from edgekit.exporting import ExportJob
from edgekit.graph import module_path, specialise
from edgekit.quiet import quiet
from edgekit.runtimes.litert import SIGNATURE
from edgekit.types import TensorSpec, entry_points

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def toolchain() -> None:
    """Import litert_torch, or raise `ToolchainMissing` with the line that installs it."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    try:
        with quiet():
            import ai_edge_quantizer  # noqa: F401
            import litert_torch  # noqa: F401
    except ImportError as error:
        raise ToolchainMissing(f"exporter 'tflite' needs {error.name}: pip install 'edgekit[tflite]'") from error


def file_inputs(job: ExportJob, layout: str) -> tuple[TensorSpec, ...]:
    """The inputs of the file: images [N, C, H, W] become [N, H, W, C] where the layout asks for it."""
    return tuple(_nhwc(spec) if layout == "NHWC" and len(spec.shape) == 4 else spec for spec in job.inputs)


def convert(job: ExportJob, layout: str) -> bytes:
    """The model as a float flatbuffer. Tensors are called `<module path>/<node index>` after the nodes of the trace.

    int64 and float64 become int32 and float32: the kernels of LiteRT have no others.
    """
    toolchain()
    try:
        with quiet():
            content = _to_flatbuffer(
                job, {name: _lowered_program(p, layout, _is_dynamic(job)) for name, p in _programs(job).items()}
            )
    except Exception as error:  # the lowerings raise whatever they stumble over
        message = f"litert_torch cannot convert '{job.name}': {reason_of(error)}"
        if any(isinstance(size, str) for spec in job.inputs for size in spec.shape):
            message += ". It knows few ops whose sizes vary: export without --dynamic, one bundle per size"
        raise UnsupportedModel(message) from error
    require_kernels(content, job.name)
    return content


def _programs(job: ExportJob) -> dict[str, ExportedProgram]:
    """Signature -> program: one for each listed size of a dynamic dimension, over the same weights."""
    module = job.program.module(check_guards=False)
    sized = {n: specialise(module, job.inputs, job.dynamic, size) for n, size in entry_points(job.dynamic).items()}
    return sized or {SIGNATURE: job.program}


def _is_dynamic(job: ExportJob) -> bool:
    return job.quantization is not None and job.quantization.scheme == "dynamic"


def _lowered_program(program: ExportedProgram, layout: str, holds_norms: bool) -> ExportedProgram:
    """A copy of the program in the ops that litert_torch lowers, channels last where its kernels want them."""
    from litert_torch import fx_infra
    from litert_torch._convert import core

    tags = {n.name: f"{module_path(n)}/{index}" for index, n in enumerate(program.graph.nodes)}
    program = fx_infra.graph_utils.reset_from_node_meta(copied(program))
    program = fx_infra.safe_run_decompositions(program, fx_infra.decomp.pre_convert_decomp(), can_skip=False)
    if layout == "NHWC":
        _take_channels_last(program)
    converted: ExportedProgram = core._run_convert_passes(program)
    _tag_nodes(converted, tags)
    if holds_norms:
        _hold_norms(converted)
    return converted


def copied(program: ExportedProgram) -> ExportedProgram:
    """The same program in a graph of its own, since litert_torch rewrites the one it is given; weights are shared."""
    import torch

    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for new, old in zip(graph.nodes, program.graph.nodes, strict=True):
        new.name = old.name  # the signature knows nodes by name, and copies avoid names of Python's own, like `input`
    return torch.export.ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _take_channels_last(program: ExportedProgram) -> None:
    """Make every four-dimensional input [N, H, W, C] and turn it inside; the layout pass then drops the turns."""
    import torch

    user_inputs = set(program.graph_signature.user_inputs)
    for node in [n for n in program.graph.nodes if n.name in user_inputs]:
        value = node.meta["val"]
        if value.dim() != 4:
            continue
        node.meta["val"] = _turned(value)
        with program.graph.inserting_after(node):
            turned = program.graph.call_function(torch.ops.aten.permute.default, (node, list(TO_NCHW)))
        node.replace_all_uses_with(turned, delete_user_cb=lambda user, turned=turned: user is not turned)
        turned.meta["val"] = value
    program.graph_module.recompile()
    program.example_inputs = torch.utils._pytree.tree_map_only(torch.Tensor, _turned, program.example_inputs)


def _turned(tensor: Tensor) -> Tensor:
    return tensor.permute(TO_NHWC).contiguous() if tensor.dim() == 4 else tensor


def _tag_nodes(program: ExportedProgram, tags: dict[str, str]) -> None:
    """Let litert_torch name tensors after our nodes: it writes out what it finds as the stack of modules."""
    from litert_torch.backend import debuginfo

    for node in program.graph.nodes:
        if tag := tags.get(debuginfo.build_nodename_debuginfo(node) or ""):
            node.meta["nn_module_stack"] = {"": ("", tag)}


def _hold_norms(program: ExportedProgram) -> None:
    """Keep the factors of layer norms out of the matrices that follow.

    Folded in, they leave the activations unscaled, whose outliers then eat the 8 bits: MiniLM had 24.3 dB, not 26.7.
    """
    from operator import getitem

    from litert_torch.backend.optimization_barrier import optimization_barrier_op as barrier

    for norm in [node for node in program.graph.nodes if "native_layer_norm" in str(node.target)]:
        for output in [user for user in norm.users if user.target is getitem and user.args[1] == 0]:
            with program.graph.inserting_after(output):  # one tensor alone comes back without its list
                held = program.graph.call_function(barrier, ([output, output],))
            with program.graph.inserting_after(held):
                passed = program.graph.call_function(getitem, (held, 0))
            output.replace_all_uses_with(passed, delete_user_cb=lambda user, held=held: user is not held)
            held.meta, passed.meta = {**output.meta, "val": [output.meta["val"]] * 2}, dict(output.meta)
    program.graph_module.recompile()


def _to_flatbuffer(job: ExportJob, programs: Mapping[str, ExportedProgram]) -> bytes:
    from litert_converter.mlir import passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as converter
    from litert_torch import backend
    from litert_torch.backend.inline_consts import InlineConstsContext

    context = backend.export_utils.create_ir_context()
    constants, parts = InlineConstsContext(), []
    for name, program in programs.items():
        lowered = backend.export.exported_program_to_mlir(
            program, ir_context=context, lowering_context_plugins=[constants]
        )
        converter.set_signature(
            lowered.module.operation,
            signature_name=name,
            input_names=[spec.name for spec in job.inputs],
            output_names=[spec.name for spec in job.outputs],
        )
        parts.append(lowered)  # the modules live in these
    module: Any = converter.merge_modules([lowered.module for lowered in parts])
    config = converter.ConvertToTFLConfig()
    config.model_origin_framework = "PYTORCH"
    config.unsafe_fuse_dynamic_shaped_broadcast = True
    config.canonicalizing_inf_as_min_max_float = False  # litert_torch clamps infinities before this
    config.enable_x64 = False
    with context:
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
    return bytes(converter.export_flatbuffer_to_bytes(getattr(module, "operation", module)))


def _nhwc(spec: TensorSpec) -> TensorSpec:
    shape = tuple(spec.shape[axis] for axis in TO_NHWC)
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape, layout="NHWC")
