"""NVIDIA GPUs: the energy counter of the driver (Volta and newer).

Millijoules since the driver was loaded, by `nvmlDeviceGetTotalEnergyConsumption` of libnvidia-ml, through ctypes.
Sources: NVML API reference; Zeus and arXiv 2312.02741 on how often counter and power move.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any, Literal

import msgspec

from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, Snapshot, not_here, require
from edgekit.errors import EdgekitError
from edgekit.types import Value

LIBRARY = "libnvidia-ml.so.1"
POWER_FIELDS = {"average": 185, "instant": 186}  # NVML_FI_DEV_POWER_*
DRIVER = "install NVIDIA's driver, or give the container the GPU"


class Nvml(Value, frozen=True, kw_only=True):
    """`device` counts as NVML does, in the order of PCI addresses: CUDA_VISIBLE_DEVICES does not change it."""

    device: int = 0
    library: str = LIBRARY

    @property
    def info(self) -> MeterInfo:
        """The GPU with its memory."""
        return MeterInfo(
            id="nvml",
            provenance="measured.counter",
            domains=("gpu",),
            covers=("gpu", "gpu memory"),
            excludes=("cpu", "dram", "fans of the chassis", "supply loss"),
            update_period_s=0.1,  # the slowest that is reported; `edgekit bench energy` measures it
            resolution_j=1e-3,
        )

    def available(self) -> Availability:
        """Whether driver, GPU and counter are there."""
        try:
            with Gpu(self.device, self.library) as gpu:
                gpu.joules()
        except OSError:
            return not_here(f"there is no {self.library}", DRIVER)
        except EdgekitError as error:
            return not_here(str(error), "the counter needs a Volta GPU or newer, and no other tenant on it")
        return HERE_IT_IS

    def open(self) -> Counter:
        """Start reading the counter."""
        require("nvml", self.available())
        return _Counter(Gpu(self.device, self.library), self.info)


class _Counter(Counter):
    def __init__(self, gpu: Gpu, info: MeterInfo) -> None:
        self._gpu, self._info = gpu, msgspec.structs.replace(info, id=f"nvml {gpu.name}")

    @property
    def info(self) -> MeterInfo:
        return self._info

    def read(self) -> Snapshot:
        return Snapshot(t_ns=time.monotonic_ns(), joules={"gpu": self._gpu.joules()})

    def close(self) -> None:
        self._gpu.close()


class _FieldValue(ctypes.Structure):
    """`nvmlFieldValue_t`."""

    _fields_ = (
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp_us", ctypes.c_longlong),
        ("latency_us", ctypes.c_longlong),
        ("kind", ctypes.c_uint),
        ("status", ctypes.c_uint),
        ("value", ctypes.c_ulonglong),
    )


class _Utilization(ctypes.Structure):
    """`nvmlUtilization_t`, in percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Gpu:
    """One GPU under NVML. Raises `OSError` without the library, `EdgekitError` with NVML's own words otherwise."""

    def __init__(self, device: int = 0, library: str = LIBRARY) -> None:
        self._nvml: Any = ctypes.CDLL(library)
        self._nvml.nvmlErrorString.restype = ctypes.c_char_p
        self._handle = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        name = ctypes.create_string_buffer(96)
        try:
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(device), ctypes.byref(self._handle))
            self._call("nvmlDeviceGetName", self._handle, name, ctypes.c_uint(len(name)))
        except EdgekitError:
            self.close()
            raise
        self.name = name.value.decode(errors="replace")

    def joules(self) -> float:
        """Energy since the driver was loaded."""
        found = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(found))
        return found.value / 1e3

    def watts(self, kind: Literal["average", "instant"]) -> float:
        """Power now, or over the last second."""
        found = _FieldValue(field=POWER_FIELDS[kind])
        self._call("nvmlDeviceGetFieldValues", self._handle, ctypes.c_int(1), ctypes.byref(found))
        self._check("nvmlDeviceGetFieldValues", found.status)
        return int(found.value & 0xFFFFFFFF) / 1e3  # an unsigned int in a union

    def busy_share(self) -> float:
        """Share of the driver's last sample period, of a sixth to one second, in which a kernel ran."""
        found = _Utilization()
        self._call("nvmlDeviceGetUtilizationRates", self._handle, ctypes.byref(found))
        return int(found.gpu) / 100

    def driver(self) -> str:
        """Version of the driver."""
        found = ctypes.create_string_buffer(96)
        self._call("nvmlSystemGetDriverVersion", found, ctypes.c_uint(len(found)))
        return found.value.decode()

    def close(self) -> None:
        """Let go of the library."""
        self._nvml.nvmlShutdown()

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._nvml, name, None)
        if function is None:
            raise EdgekitError(f"this libnvidia-ml has no {name}: the driver is too old")
        self._check(name, function(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code:
            said = self._nvml.nvmlErrorString(code)
            raise EdgekitError(f"{name} says '{said.decode() if said else code}'")


METER = Nvml
