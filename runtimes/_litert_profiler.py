"""LiteRT's own profiler, which its Python binding does not offer: it is asked through the C library of the same wheel.

`libLiteRt.so` exports it (litert_profiler.h, litert_compiled_model.h). Ops within XNNPACK come under XNNPACK's names,
all in whole microseconds. How an event lies in memory is no part of what the headers promise, so only versions that
this was checked with are asked.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.op_profile import OpEvent, call_seconds, watched_calls
from edgekit.processing import Array

CHECKED = "2.3."  # versions of ai-edge-litert begin so
LIBRARY = "libLiteRt.so"
OPTIONS = {b"runtime_options_string": "enable_profiling = true\n", b"xnnpack": "num_threads = {threads}\n"}
CPU, WRITE = 1, 1  # of LiteRtHwAcceleratorSet and LiteRtTensorBufferLockMode
TENSOR_TYPE_BYTES = 1024  # more than a LiteRtRankedTensorType takes
BUILTIN, DELEGATED = 2, 8  # tflite::Profiler::EventType of an op, and of one within a delegate
MICROSECOND = 1e-6
Handle = ctypes.c_void_p


class _Event(ctypes.Structure):
    """`ProfiledEventData` of litert_profiler_event.h."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("index", ctypes.c_int64),
        ("graph", ctypes.c_int64),
        ("source", ctypes.c_int),
    )


class _Library:
    """The C library; what it makes is destroyed with the stack."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self._library, self._stack = ctypes.CDLL(str(path)), stack

    def do(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises `RuntimeError` with its name and status."""
        if status := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name} says {status}")

    def get(self, name: str, *arguments: Any, kind: Any = Handle) -> Any:
        """What a function writes to its last argument."""
        found = kind()
        self.do(name, *arguments, ctypes.byref(found))
        return found

    def make(self, name: str, *arguments: Any, destroy: str) -> Any:
        """As `get`, of what has to be destroyed."""
        made = self.get(name, *arguments)
        self._stack.callback(getattr(self._library, destroy), made)
        return made


def watched_inferences(
    library: Path, model: Path, signature: str, feeds: Mapping[str, Array], threads: int
) -> tuple[float, list[float], list[list[OpEvent]]]:
    """Median seconds of an unwatched inference, then seconds and ops of each watched one.

    `feeds` are in the dtypes of the file. Raises `RuntimeError` or `OSError` where LiteRT refuses.
    """
    with contextlib.ExitStack() as stack:
        lib = _Library(library, stack)
        environment = lib.make("LiteRtCreateEnvironment", 0, None, destroy="LiteRtDestroyEnvironment")
        file = lib.make("LiteRtCreateModelFromFile", environment, str(model).encode(), destroy="LiteRtDestroyModel")
        options = _options(lib, stack, threads)
        compiled = lib.make("LiteRtCreateCompiledModel", environment, file, options,
                            destroy="LiteRtDestroyCompiledModel")  # fmt: skip
        number, wanted = _signature(lib, file, signature)
        inputs = _buffers(lib, environment, compiled, number, wanted, "Input")
        outputs = _buffers(lib, environment, compiled, number, wanted, "Output")
        for name, buffer in inputs.items():
            _fill(lib, buffer, feeds[name])
        ends = [value for side in (inputs, outputs)
                for value in (ctypes.c_size_t(len(side)), (Handle * len(side))(*side.values()))]  # fmt: skip

        def run() -> None:
            lib.do("LiteRtRunCompiledModel", compiled, number, *ends)

        profiler = lib.get("LiteRtCompiledModelGetProfiler", compiled)
        calls, plain_s = watched_calls(run)
        watched = [_watched(lib, profiler, run) for _ in range(calls)]
    return plain_s, [seconds for seconds, _ in watched], [events for _, events in watched]


def _options(lib: _Library, stack: contextlib.ExitStack, threads: int) -> Any:
    """Options that turn the profiler on and set the threads."""
    kept: list[Any] = [ctypes.CFUNCTYPE(None, Handle)(lambda payload: None)]
    stack.callback(kept.clear)  # after the options, which call it, were destroyed
    options = lib.make("LiteRtCreateOptions", destroy="LiteRtDestroyOptions")
    lib.do("LiteRtSetOptionsHardwareAccelerators", options, CPU)
    for name, text in OPTIONS.items():
        kept.append(ctypes.create_string_buffer(text.format(threads=threads).encode()))
        lib.do("LiteRtAddOpaqueOptions", options, lib.get("LiteRtCreateOpaqueOptions", name, kept[-1], kept[0]))
    return options


def _signature(lib: _Library, file: Any, name: str) -> tuple[Any, Any]:
    """The number and handle of a signature."""
    for number in range(lib.get("LiteRtGetNumModelSignatures", file, kind=ctypes.c_size_t).value):
        found = lib.get("LiteRtGetModelSignature", file, ctypes.c_size_t(number))
        if lib.get("LiteRtGetSignatureKey", found, kind=ctypes.c_char_p).value == name.encode():
            return ctypes.c_size_t(number), found
    raise RuntimeError(f"there is no signature '{name}'")


def _buffers(lib: _Library, environment: Any, compiled: Any, number: Any, signature: Any, side: str) -> dict[str, Any]:
    """A buffer for each input or output of a signature, in its order."""
    found = {}
    for index in range(lib.get(f"LiteRtGetNumSignature{side}s", signature, kind=ctypes.c_size_t).value):
        at = ctypes.c_size_t(index)
        name = lib.get(f"LiteRtGetSignature{side}Name", signature, at, kind=ctypes.c_char_p).value.decode()
        tensor = lib.get(f"LiteRtGetSignature{side}TensorByIndex", signature, at)
        dtype_and_shape = ctypes.create_string_buffer(TENSOR_TYPE_BYTES)
        lib.do("LiteRtGetRankedTensorType", tensor, dtype_and_shape)
        needed = lib.get(f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, number, at)
        found[name] = lib.make("LiteRtCreateManagedTensorBufferFromRequirements", environment, dtype_and_shape, needed,
                               destroy="LiteRtDestroyTensorBuffer")  # fmt: skip
    return found


def _fill(lib: _Library, buffer: Any, array: Array) -> None:
    content = np.ascontiguousarray(array).tobytes()
    size = lib.get("LiteRtGetTensorBufferPackedSize", buffer, kind=ctypes.c_size_t).value
    if size != len(content):
        raise RuntimeError(f"an input takes {size} bytes, and {len(content)} were given")
    memory = Handle()
    lib.do("LiteRtLockTensorBuffer", buffer, ctypes.byref(memory), WRITE)
    ctypes.memmove(memory, content, size)
    lib.do("LiteRtUnlockTensorBuffer", buffer)


def _watched(lib: _Library, profiler: Any, run: Callable[[], None]) -> tuple[float, list[OpEvent]]:
    """Seconds and ops of one inference; the profiler forgets what it noted before."""
    lib.do("LiteRtResetProfiler", profiler)
    lib.do("LiteRtStartProfiler", profiler)
    [seconds] = call_seconds(run, 1)
    lib.do("LiteRtStopProfiler", profiler)
    count = lib.get("LiteRtGetNumProfilerEvents", profiler, kind=ctypes.c_int)
    events = (_Event * count.value)()
    lib.do("LiteRtGetProfilerEvents", profiler, count, events)
    return seconds, [_op(event) for event in events if event.kind in (BUILTIN, DELEGATED)]


def _op(event: _Event) -> OpEvent:
    unit = "xnnpack" if event.kind == DELEGATED else "builtin"
    return OpEvent(op=event.tag.decode(), name=f"#{event.index}", unit=unit, seconds=event.elapsed_us * MICROSECOND)
