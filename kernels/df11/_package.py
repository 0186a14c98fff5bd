"""The dfloat11 package's own decoder, where that is installed: what ours is timed beside, and nothing else.

The package imports CuPy to load `decode.ptx`, a file beside it. Here the CUDA driver loads that file, so that CuPy need
not be there. Arguments and shared memory are those that `dfloat11.py` of version 0.5.0 gives it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edgekit.errors import EdgekitError
from edgekit.processing import Array

THREADS = 512
BLOCK_BYTES = 8 * THREADS  # of code


class Group(NamedTuple):
    """A group on a CUDA device, in the order of the kernel's arguments."""

    luts: torch.Tensor
    encoded_exponent: torch.Tensor
    sign_mantissa: torch.Tensor
    output_positions: torch.Tensor
    gaps: torch.Tensor


def decoder_file() -> Path | None:
    """The package's compiled kernel, which is found without importing the package; None where it is not installed."""
    package = find_spec("dfloat11")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0], "decode.ptx")
    return path if path.exists() else None


def upload(parts: Mapping[str, Array]) -> Group:
    """The parts of a group as the package has them on the current CUDA device."""
    return Group(*(torch.tensor(parts[name], device="cuda") for name in Group._fields))


def shared_bytes(parts: Mapping[str, Array]) -> int:
    """Shared memory of a program: a count for each thread and one more, and the bf16 weights of the largest block."""
    positions = np.frombuffer(parts["output_positions"].tobytes(), "<u4").astype(np.int64)
    return 4 * THREADS + 4 + 2 * int(np.diff(positions).max())


def decode(group: Group, shared: int) -> torch.Tensor:
    """The bf16 weights of a group, flat, on the current stream. `shared` is what `shared_bytes` says."""
    count, size = group.sign_mantissa.numel(), group.encoded_exponent.numel()
    out = torch.empty(count, dtype=torch.bfloat16, device=group.sign_mantissa.device)
    numbers = [ctypes.c_int(number) for number in (len(group.luts), size, count)]
    arguments = [*(ctypes.c_void_p(tensor.data_ptr()) for tensor in (*group, out)), *numbers]
    places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    grid = -(-size // BLOCK_BYTES)
    _call("cuLaunchKernel", _function(), grid, 1, 1, THREADS, 1, 1, shared, stream, places, None)
    return out


@cache
def _function() -> ctypes.c_void_p:
    """The kernel in torch's context, compiled for its device by the driver."""
    path = decoder_file()
    if path is None:
        raise EdgekitError("the dfloat11 package is not installed: pip install --no-deps dfloat11==0.5.0")
    torch.cuda.current_stream().synchronize()  # makes the context
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuModuleLoadData", ctypes.byref(module), path.read_bytes() + b"\0")
    _call("cuModuleGetFunction", ctypes.byref(function), module, b"decode")
    return function


def _call(name: str, *arguments: object) -> None:
    if code := getattr(_driver(), name)(*arguments):
        raise EdgekitError(f"the dfloat11 package's decoder: {name} gave CUDA error {code}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
