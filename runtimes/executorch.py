"""ExecuTorch on the CPU, with XNNPACK, through the Python binding of its C++ runtime.

The binding needs torch, so this runtime is for the workstation that verifies a bundle; a board runs the same file with
ExecuTorch's C++ runner. The threads of XNNPACK belong to the process: a session that asks for another number sets it
for every open session of this format.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from edgekit.bundle import Bundle, Delegation, Manifest
from edgekit.errors import BundleCorrupt, InvalidInput, ToolchainMissing, reason_of
from edgekit.op_profile import OpProfile, no_ops, summarize_ops, watched_calls
from edgekit.processing import Array, Arrays
from edgekit.quiet import quiet_native
from edgekit.runtimes._executorch_file import METHOD, first_method, read_file
from edgekit.runtimes._executorch_trace import layout_copies_share, op_events, traced_calls
from edgekit.runtimes._op_places import placed
from edgekit.session import CountedSession, by_size, entry_point
from edgekit.types import entry_points

FORMAT = "executorch"
DISTRIBUTION = "executorch"
PROFILER = "ExecuTorch's trace (ETDump)"
SCALARS = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32",
                             7: "float64", 11: "bool", 15: "bfloat16"}  # fmt: skip


def load_backend() -> str:
    """Import torch and ExecuTorch's native module, and return ExecuTorch's version."""
    _binding()
    return version(DISTRIBUTION)


def open_session(bundle: Bundle, *, threads: int = 1) -> CountedSession:
    """Map the bundle's model into memory and load its methods."""
    torch, binding = _binding()
    with quiet_native() as log:
        if binding._threadpool_get_thread_count() != threads:
            binding._unsafe_reset_threadpool(threads)
        program, methods = _load(binding, bundle, log)
    inputs, dynamic = bundle.manifest.inputs, bundle.manifest.dynamic
    names = [spec.name for spec in inputs]
    call = by_size(lambda name: _caller(torch, methods[name], names), METHOD, inputs, dynamic)
    return CountedSession(bundle, call, owner=program)  # which owns the mapped file that the methods read


def delegation(bundle: Bundle, feeds: Arrays) -> Delegation:
    """Which unit runs each op, fixed when the file was made, and what a traced call spends on layout copies."""
    torch, _ = _binding()
    method = first_method(bundle.manifest.dynamic)
    found = bundle.manifest.delegation or read_file(bundle.artifact_path, method).delegation()
    if not found.layout_copies or found.layout_copies_share is not None:
        return found
    share = layout_copies_share(bundle.artifact_path, method, _tensors(torch, bundle, feeds))
    return msgspec.structs.replace(found, layout_copies_share=share)


def time_ops(bundle: Bundle, feeds: Arrays, *, threads: int = 1) -> OpProfile:
    """The time of each op from the runtime's trace; portable kernels with their places in the model."""
    torch, _ = _binding()
    with open_session(bundle, threads=threads) as session:
        calls, plain_s = watched_calls(lambda: session.run(feeds))
    method = entry_point(METHOD, bundle.manifest.inputs, bundle.manifest.dynamic, feeds)
    try:
        watched_s, traces = traced_calls(bundle.artifact_path, method, _tensors(torch, bundle, feeds), calls)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return no_ops(PROFILER, f"this build of the runtime gives no trace: {reason_of(error)}")
    fallbacks = bundle.manifest.delegation.fallbacks if bundle.manifest.delegation else ()
    events = [placed(op_events(trace), "portable", fallbacks) for trace in traces]
    return summarize_ops(PROFILER, plain_s, watched_s, events)


def _tensors(torch: ModuleType, bundle: Bundle, feeds: Arrays) -> list[Any]:
    return [torch.from_numpy(np.array(feeds[spec.name], order="C")) for spec in bundle.manifest.inputs]


def _caller(torch: ModuleType, method: Any, names: list[str]) -> Callable[[Arrays], list[Array]]:
    """What runs the method on arrays by name. The binding takes torch tensors, and copies its outputs."""
    from_numpy, as_array = torch.from_numpy, np.asarray

    def call(feeds: Arrays) -> list[Array]:
        tensors = []
        for name in names:
            array = as_array(feeds[name], order="C")  # other strides would be read as another layout
            tensors.append(from_numpy(array if array.flags.writeable else array.copy()))  # torch warns of the others
        try:
            outputs = method(tensors)
        except RuntimeError as error:
            reason = reason_of(error).rstrip(".")
            raise InvalidInput(
                f"executorch could not run the model on these inputs: {reason}. Shapes and dtypes fit, so "
                "look for values out of range, as an id beyond its table"
            ) from error
        return [output.numpy() for output in outputs]

    return call


def _binding() -> tuple[ModuleType, ModuleType]:
    """torch and ExecuTorch's native module. `ToolchainMissing` where one cannot be imported."""
    try:
        with quiet_native():
            import torch
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise ToolchainMissing("runtime 'executorch' is not installed: pip install 'edgekit[executorch]'") from error
    return torch, portable_lib


def _load(binding: ModuleType, bundle: Bundle, log: Callable[[], str]) -> tuple[Any, dict[str, Any]]:
    """The mapped program and its methods, checked against the manifest. `BundleCorrupt` where they do not fit."""
    path, manifest = bundle.artifact_path, bundle.manifest
    try:
        program = binding._load_program(str(path), program_verification=binding.Verification.InternalConsistency)
        sizes = entry_points(manifest.dynamic)
        methods = {name: program.load_method(name) for name in sizes or (METHOD,)}
        found = [_mismatch(method.method_meta(), manifest, name, sizes.get(name)) for name, method in methods.items()]
    except Exception as error:  # the binding raises RuntimeError, IndexError and ValueError
        missing = re.findall(r"[Mm]issing operator: \[\d+\] (\S+)", log())
        reason = f"it has no kernel for {', '.join(missing)}" if missing else reason_of(error).rstrip(".")
        raise BundleCorrupt(
            f"executorch {version(DISTRIBUTION)} cannot load '{path}': {reason}. The bundle asks for "
            f"{bundle.artifact.runtime_version_range}"
        ) from error
    if wrong := next(filter(None, found), None):
        raise BundleCorrupt(f"'{path}' does not fit its manifest: {wrong}. Export the model again")
    return program, methods


def _mismatch(meta: Any, manifest: Manifest, method: str, size: int | None) -> str | None:
    """What the file has otherwise than its manifest says; sizes that vary within a method are not compared."""
    taken, given = meta.num_inputs(), meta.num_outputs()
    if (taken, given) != (len(manifest.inputs), len(manifest.outputs)):
        named = f"{len(manifest.inputs)} and {len(manifest.outputs)}"
        return f"{method} takes {taken} inputs and gives {given} outputs, its manifest names {named}"
    ends = [(meta.input_tensor_meta(index), spec) for index, spec in enumerate(manifest.inputs)]
    ends += [(meta.output_tensor_meta(index), spec) for index, spec in enumerate(manifest.outputs)]
    for info, spec in ends:
        shape, dtype = tuple(info.sizes()), SCALARS.get(info.dtype(), f"scalar type {info.dtype()}")
        wanted = [size if axis == method.removesuffix(f"_{size}") else axis for axis in spec.shape]
        same = len(shape) == len(wanted) and all(
            isinstance(w, str) or w == s for w, s in zip(wanted, shape, strict=True)
        )
        if dtype != spec.dtype or not same:
            return f"'{spec.name}' of {method} is {dtype} {shape}, and the manifest says {spec.dtype} {spec.shape}"
    return None
