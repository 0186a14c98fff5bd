"""LiteRT on the CPU: `ai_edge_litert`, else the older `tflite_runtime`, which offers the same interpreter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit.bundle import Bundle, Delegation
from edgekit.errors import BundleCorrupt, InvalidInput, ToolchainMissing
from edgekit.op_profile import OpProfile, no_ops, summarize_ops
from edgekit.processing import Array, Arrays
from edgekit.quiet import quiet_native
from edgekit.runtimes._litert_delegation import delegated, median_seconds
from edgekit.runtimes._litert_file import only_layout_copies
from edgekit.runtimes._litert_profiler import CHECKED, LIBRARY, watched_inferences
from edgekit.runtimes._op_places import placed
from edgekit.session import CountedSession, by_size, entry_point
from edgekit.types import DynamicDim, TensorSpec, entry_points

FORMAT = "tflite"
SIGNATURE = "serving_default"
PROFILER = "LiteRT's profiler"
OLDER = "tflite_runtime.interpreter"
INTERPRETERS = {"ai_edge_litert.interpreter": "ai-edge-litert", OLDER: "tflite-runtime"}
OPTIONAL_OPERANDS = {"CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "SVDF", "RNN",
                     "LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"}  # fmt: skip
Edge = Callable[[Array], Array]  # between an array of the model's dtype and one of the file's


def load_backend() -> str:
    """Import the interpreter and return its version."""
    for name, distribution in INTERPRETERS.items():
        with contextlib.suppress(ImportError):
            import_module(name)
            return version(distribution)
    raise ToolchainMissing("runtime 'litert' is not installed: pip install 'edgekit[litert]'")


def open_session(bundle: Bundle, *, threads: int = 1) -> CountedSession:
    """Load the bundle's model into LiteRT."""
    return CountedSession(bundle, _calls(open_interpreter(bundle, threads), bundle))


def delegation(bundle: Bundle, feeds: Arrays) -> Delegation:
    """Which ops XNNPACK took over, as LiteRT partitioned them, and why it left the others."""
    interpreter = open_interpreter(bundle, 1)
    call = partial(_calls(interpreter, bundle), feeds)
    call()
    found = delegated(interpreter)
    if not found.layout_copies:
        return found
    try:
        content = only_layout_copies(bundle.artifact_path.read_bytes())
    except ImportError:  # tflite_runtime comes without a writer of files
        return found
    copies = type(interpreter)(model_content=content, num_threads=1)
    copies.allocate_tensors()
    copies.invoke()
    share = median_seconds(copies.invoke) / median_seconds(call)
    return msgspec.structs.replace(found, layout_copies_share=min(share, 1.0))


def time_ops(bundle: Bundle, feeds: Arrays, *, threads: int = 1) -> OpProfile:
    """The time of each op from LiteRT's profiler; `tflite_runtime` comes without one."""
    manifest = bundle.manifest
    try:
        import ai_edge_litert

        found = version(INTERPRETERS["ai_edge_litert.interpreter"])
    except ImportError:
        return no_ops(PROFILER, "tflite_runtime comes without the library that has it: pip install ai-edge-litert")
    if not found.startswith(CHECKED):
        return no_ops(PROFILER, f"its interface was checked with ai-edge-litert {CHECKED}x, and this is {found}")
    if any(not dim.sizes for dim in manifest.dynamic):
        return no_ops(PROFILER, "it is asked of models whose inputs have one size, or listed sizes")
    signature = entry_point(SIGNATURE, manifest.inputs, manifest.dynamic, feeds)
    inputs, _ = edges(open_interpreter(bundle, threads), bundle, signature)
    arrays = {name: feeds[name] if encode is None else encode(feeds[name]) for name, _, encode in inputs}
    library = Path(ai_edge_litert.__file__).with_name(LIBRARY)
    try:
        with quiet_native():
            watched = watched_inferences(library, bundle.artifact_path, signature, arrays, threads)
    except (OSError, RuntimeError, AttributeError) as error:
        return no_ops(PROFILER, f"LiteRT's C library does not give it: {error}")
    plain_s, watched_s, inferences = watched
    fallbacks = manifest.delegation.fallbacks if manifest.delegation else ()
    return summarize_ops(PROFILER, plain_s, watched_s, [placed(each, "builtin", fallbacks) for each in inferences])


def open_interpreter(bundle: Bundle, threads: int) -> Any:
    """An interpreter with the bundle's model and its tensors in place. Raises `ToolchainMissing`, `BundleCorrupt`."""
    reasons = []
    for name in INTERPRETERS:
        try:
            module = import_module(name)
        except ImportError as error:
            reasons.append(str(error))
            continue
        if name == OLDER and bundle.manifest.precision.quantized_ops:  # seen with 2.14: other answers and no error
            reasons.append("tflite_runtime knows one scale a matrix, and this bundle's int8 weights have one a channel")
            continue
        try:
            with quiet_native():
                interpreter = module.Interpreter(model_path=str(bundle.artifact_path), num_threads=threads)
                _check_operands(interpreter)
                interpreter.allocate_tensors()
            return interpreter
        except (ValueError, RuntimeError) as error:
            raise BundleCorrupt(
                f"{name.partition('.')[0]} cannot load '{bundle.artifact_path}': {error}. The bundle asks for "
                f"{bundle.artifact.runtime_version_range}"
            ) from error
        except (SystemError, ImportError, AttributeError) as error:  # tflite_runtime imports fine beside numpy 2
            reasons.append(f"{name} cannot run here: {error}")
    raise ToolchainMissing(f"runtime 'litert' is not installed ({'; '.join(reasons)}): pip install 'edgekit[litert]'")


def _check_operands(interpreter: Any) -> None:
    """Raise `ValueError` for an op without an operand it cannot do without: some kernels end the process over it."""
    for operation in interpreter._get_ops_details():
        absent = [position for position, tensor in enumerate(operation["inputs"]) if tensor < 0]
        if absent and (absent[0] == 0 or operation["op_name"] not in OPTIONAL_OPERANDS):
            raise ValueError(f"op {operation['index']} ({operation['op_name']}) lacks its operand {absent[0]}")


def _calls(interpreter: Any, bundle: Bundle) -> Callable[[Arrays], Sequence[Array]]:
    """What runs the file: its one signature, or that of the size at hand, over the same weights."""
    manifest = bundle.manifest
    if not entry_points(manifest.dynamic):
        return _call(interpreter, *edges(interpreter, bundle, SIGNATURE), manifest.dynamic)

    def of_signature(name: str) -> Callable[[Arrays], Sequence[Array]]:
        inputs, outputs = edges(interpreter, bundle, name)
        return _signature_call(interpreter.get_signature_runner(name), inputs, outputs, bundle)

    return by_size(of_signature, SIGNATURE, manifest.inputs, manifest.dynamic)


def _signature_call(
    runner: Any, inputs: list[tuple[str, int, Edge | None]], outputs: list[tuple[int, Edge | None]], bundle: Bundle
) -> Callable[[Arrays], Sequence[Array]]:
    """A call of one signature of several; the interpreter's own calls reach the tensors of the first one only."""
    edges = list(zip((spec.name for spec in bundle.manifest.outputs), (decode for _, decode in outputs), strict=True))

    def call(feeds: Arrays) -> list[Array]:
        found = runner(**{n: feeds[n] if encode is None else encode(feeds[n]) for n, _, encode in inputs})
        return [found[name] if decode is None else decode(found[name]) for name, decode in edges]

    return call


def edges(
    interpreter: Any, bundle: Bundle, signature: str
) -> tuple[list[tuple[str, int, Edge | None]], list[tuple[int, Edge | None]]]:
    """For each input and output of the manifest its tensor in the file and what lies between them, if anything.

    Raises `BundleCorrupt` where the file has other tensors than the manifest says.
    """
    if signature not in interpreter.get_signature_list():
        raise BundleCorrupt(f"'{bundle.artifact_path}' has no signature '{signature}', by which its tensors are known")
    runner = interpreter.get_signature_runner(signature)
    given, made = runner.get_input_details(), runner.get_output_details()
    sizes = {dim.axis_name: entry_points((dim,)).get(signature) for dim in bundle.manifest.dynamic}
    for spec, found in [*((s, given) for s in bundle.manifest.inputs), *((s, made) for s in bundle.manifest.outputs)]:
        if spec.name not in found:
            raise BundleCorrupt(f"'{bundle.artifact_path}' has no tensor '{spec.name}', which the manifest names")
        if wrong := _difference(spec, found[spec.name], sizes):
            raise BundleCorrupt(f"'{bundle.artifact_path}' has '{spec.name}' as {wrong}, the manifest says {spec}")
    feeds = [(s.name, given[s.name]["index"], _encode(s, given[s.name])) for s in bundle.manifest.inputs]
    return feeds, [(made[s.name]["index"], _decode(s, made[s.name])) for s in bundle.manifest.outputs]


def _difference(spec: TensorSpec, details: Any, sizes: Mapping[str, int | None]) -> str | None:
    """The file's side of a tensor that the manifest describes otherwise; `sizes` holds what dynamic ones are here."""
    dtype, steps = np.dtype(details["dtype"]), details["quantization_parameters"]
    shape = [int(size) for size in details["shape_signature"]]  # -1: any
    wanted = [sizes.get(size) if isinstance(size, str) else size for size in spec.shape]
    if len(wanted) != len(shape) or any(w not in (None, s) and s >= 0 for w, s in zip(wanted, shape, strict=True)):
        return f"{dtype}[{', '.join(map(str, shape))}]"
    if (kind := np.dtype(spec.dtype).kind) == dtype.kind:
        return None
    if kind == "f" and dtype.kind in "iu":
        whole = len(steps["scales"]) == len(steps["zero_points"]) == 1 and steps["scales"][0] > 0
        return None if whole else f"{dtype} without the one scale and zero point that would make it floats"
    return None if kind in "iu" and dtype.kind in "iu" else str(dtype)


def _encode(spec: TensorSpec, details: Any) -> Edge | None:
    wanted, dtype = np.dtype(spec.dtype), np.dtype(details["dtype"])
    if wanted == dtype:
        return None
    if wanted.kind == "f" and dtype.kind in "iu":
        return partial(_quantize, dtype=dtype, **_step(details))
    return partial(_cast, name=spec.name, dtype=dtype)


def _decode(spec: TensorSpec, details: Any) -> Edge | None:
    wanted, dtype = np.dtype(spec.dtype), np.dtype(details["dtype"])
    if wanted == dtype:
        return None
    if wanted.kind == "f" and dtype.kind in "iu":
        return partial(_dequantize, dtype=wanted, **_step(details))
    return lambda array: array.astype(wanted)


def _call(
    interpreter: Any,
    inputs: list[tuple[str, int, Edge | None]],
    outputs: list[tuple[int, Edge | None]],
    dynamic: tuple[DynamicDim, ...],
) -> Callable[[Arrays], list[Array]]:
    set_tensor, invoke, get_tensor = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor
    shapes: dict[str, tuple[int, ...]] = {}

    def call(feeds: Arrays) -> list[Array]:
        for name, index, encode in inputs:
            set_tensor(index, feeds[name] if encode is None else encode(feeds[name]))
        try:
            invoke()
        except RuntimeError as error:  # an index beyond a table, for example
            raise InvalidInput(f"LiteRT cannot compute with these inputs: {error}") from error
        return [get_tensor(index) if decode is None else decode(get_tensor(index)) for index, decode in outputs]

    def call_resized(feeds: Arrays) -> list[Array]:
        nonlocal shapes
        if shapes != (now := {name: feeds[name].shape for name, _, _ in inputs}):
            shapes = {}
            try:
                for name, index, _ in inputs:
                    interpreter.resize_tensor_input(index, now[name])
                interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise InvalidInput(f"LiteRT cannot take inputs of these sizes: {error}") from error
            shapes = now
        return call(feeds)

    return call_resized if dynamic else call


def _step(details: Any) -> dict[str, Any]:
    found = details["quantization_parameters"]
    return {"scale": found["scales"][0], "zero_point": int(found["zero_points"][0])}


def _quantize(array: Array, dtype: np.dtype[Any], scale: Any, zero_point: int) -> Array:
    limits = np.iinfo(dtype)
    steps: Array = np.clip(np.rint(array / scale) + zero_point, limits.min, limits.max).astype(dtype)
    return steps


def _dequantize(array: Array, dtype: np.dtype[Any], scale: Any, zero_point: int) -> Array:
    values: Array = ((array.astype(np.float32) - zero_point) * scale).astype(dtype)
    return values


def _cast(array: Array, name: str, dtype: np.dtype[Any]) -> Array:
    """The values in the file's narrower dtype."""
    narrow = array.astype(dtype)
    if dtype.kind == "i" and not np.array_equal(narrow, array):
        raise InvalidInput(
            f"input '{name}' holds {array.min()} to {array.max()}; TFLite computes with {dtype}, which ends at "
            f"{np.iinfo(dtype).max}: keep ids in that range"
        )
    return narrow
