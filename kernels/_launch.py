"""What every op asks of its tensors before its kernel starts."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgekit.errors import InvalidInput, ToolchainMissing


def check_tensors(op: str, tensors: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise `InvalidInput` unless the tensors are contiguous, of these dtypes and on one device that `op` runs on."""
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        raise InvalidInput(f"{op}: the tensors are on {found}; move them to one device")
    for name, dtype in dtypes.items():
        if tensors[name].dtype != dtype:
            raise InvalidInput(f"{op}: '{name}' is {tensors[name].dtype}, not {dtype}")
        if not tensors[name].is_contiguous():
            raise InvalidInput(f"{op}: '{name}' is not contiguous; give it as {name}.contiguous()")
    check_device(op, next(iter(devices)))


def check_device(op: str, device: torch.device) -> None:
    """Raise `InvalidInput` unless kernels run on this device."""
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        raise InvalidInput(
            f"{op}: the weights are on '{device}', and the kernel runs on CUDA devices; move them there with "
            "tensor.cuda(), or set TRITON_INTERPRET=1 before Python starts to run it slowly on the CPU"
        )


def rows_asked(op: str, ids: torch.Tensor, weights: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the ids are one of so many rows, bool `[n, 1]`, and the rows, int64 `[n]`: 0 for those that are none.

    Raises `InvalidInput` for ids that are no integers or not on the device of the weights.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise InvalidInput(f"{op}: 'ids' is {ids.dtype}, not torch.int64")
    check_tensors(op, {"ids": ids, "weights": weights}, {})
    flat = ids.reshape(-1).long()
    known = (flat >= 0) & (flat < rows)
    return known[:, None], torch.where(known, flat, 0)


def check_shape(op: str, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise `InvalidInput` unless the tensor has this shape."""
    if tuple(tensor.shape) != shape:
        raise InvalidInput(f"{op}: '{name}' has shape {list(tensor.shape)}, not {list(shape)}")


def _interpreted() -> bool:
    try:
        import triton
    except ImportError as error:
        raise ToolchainMissing("the kernels need triton: pip install triton") from error
    return bool(triton.knobs.runtime.interpret)
