"""Measure what a device's profile cannot know: bandwidth, the rate of each kind of kernel, and what a call costs.

Micromodels run in the worker process that measures bundles too, so whatever place can start one can be calibrated.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekit import registry
from edgekit.benchmark import warm_up
from edgekit.bundle import Bundle
from edgekit.calibration_profile import Observed, Sample, calibrated
from edgekit.compression import Progress, silent
from edgekit.energy import Energy
from edgekit.errors import InvalidInput, MeterMissing, UnsupportedModel, unknown_name
from edgekit.inference import RUNTIMES
from edgekit.measurement import HostState
from edgekit.meters import EnergyRequest
from edgekit.micromodels import PRECISION_OF, PRODUCTS, Micromodel, build, chains, micromodels
from edgekit.place import HERE, Place, Worker
from edgekit.planning import EXPORTERS
from edgekit.profile import ComputeUnit, DeviceProfile, RuntimeChoice
from edgekit.types import DType

TIMED_S = 0.3  # of calls of each model, after its warm-up
LEAST_CALLS, MOST_CALLS = 5, 300  # in each of the rounds
ROUNDS = 3
MACHINES = {"arm64-linux": ("aarch64", "arm64"), "x86_64-linux": ("x86_64", "AMD64")}  # as platform.machine() says
Job = tuple[Micromodel, DType]


def calibrate(
    device: DeviceProfile,
    runtime: str | None = None,
    *,
    threads: int = 1,
    place: Place = HERE,
    progress: Progress = silent,
) -> tuple[DeviceProfile, Observed]:
    """Measure a device, and return a copy of its profile with what was found.

    Raises `InvalidInput` where the runtime is not on the device's CPU, or the place is another machine than the
    profile's; `ToolchainMissing`.
    """
    if threads < 1:
        raise InvalidInput(f"threads must be 1 or more, not {threads}")
    choice = runtime_on_cpu(device, runtime)
    unit = device.unit_of(choice)
    found = observe(device, choice, jobs(unit, choice.format, micromodels()), threads, place, progress)
    return calibrated(device, unit, found), found


def jobs(unit: ComputeUnit, format: str, models: Sequence[Micromodel]) -> list[Job]:
    """Each model in float32, and products in the narrower types that the unit computes in and the format holds."""
    allowed = registry.load(EXPORTERS, format).PRECISIONS
    narrow: list[DType] = [d for d in unit.fast_dtypes if d != "float32" and PRECISION_OF.get(d) in allowed]
    floats: list[Job] = [(model, "float32") for model in models]
    return floats + [(model, dtype) for dtype in narrow for model in models if model.op_class in PRODUCTS]


def observe(
    device: DeviceProfile, choice: RuntimeChoice, wanted: Sequence[Job], threads: int, place: Place, progress: Progress
) -> Observed:
    """Build and time chains for the overheads, then everything wanted; nothing is left on disk."""
    samples: list[Sample] = []
    skipped: list[str] = []
    lengths = chains()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        progress("build a first model, and copy memory")
        first = build(lengths[0], choice.format, "float32", device, Path(scratch) / "first")
        with Worker(first, threads, place) as worker:
            opened = worker.opening
            check_machine(device, opened.state)
            copied = worker.bandwidth(threads)
            progress("read the idle power, where a meter is")
            idle = _idle(worker)
        everything: list[Job] = [*((chain, "float32") for chain in lengths), *wanted]
        for number, (model, dtype) in enumerate(everything, 1):
            progress(f"{number} of {len(everything)}: {model.name}, {dtype}")
            try:
                bundle = build(model, choice.format, dtype, device, Path(scratch) / str(number))
            except UnsupportedModel as error:
                if model in lengths:  # without overheads nothing can be told of the rest
                    raise
                skipped.append(f"{model.name}, {dtype}: {error}")
            else:
                samples.append(_timed(model, dtype, bundle, threads, place))
    return Observed(
        runtime=choice.name,
        runtime_version=opened.runtime_version,
        threads=threads,
        host=opened.state,
        idle=idle,
        bandwidth=copied,
        chains=tuple(samples[: len(lengths)]),
        samples=tuple(samples[len(lengths) :]),
        skipped=tuple(skipped),
    )


def runtime_on_cpu(device: DeviceProfile, runtime: str | None) -> RuntimeChoice:
    """The runtime to measure: the one that is named, or the profile's first that edgekit opens. They run on the CPU."""
    known = registry.names(RUNTIMES)
    if runtime is not None and runtime not in known:
        raise unknown_name("runtime", runtime, known)
    here = [c for c in device.runtime if c.name in known and device.unit_of(c).kind == "cpu"]
    for choice in here:
        if runtime in (None, choice.name):
            return choice
    raise InvalidInput(
        f"edgekit opens {runtime or 'models'} on the CPU only, and of the runtimes in the profile of {device.title} "
        f"these run there: {', '.join(c.name for c in here) or 'none'}"
    )


def check_machine(device: DeviceProfile, host: HostState) -> None:
    """Raise `InvalidInput` when the figures would be another machine's than the profile's."""
    fitting = MACHINES.get(device.family)
    if fitting is not None and host.machine not in fitting:
        raise InvalidInput(
            f"this machine is {host.machine}, and {device.title} is {device.family}: run edgekit calibrate there"
        )
    if host.emulated:
        raise InvalidInput(f"this machine is emulated: its times say nothing about {device.title}")


def _idle(worker: Worker) -> Energy | None:
    """What the machine's best meter reads around a window of calls, the time between them included."""
    try:
        return worker.energy(EnergyRequest(mode="measured")).energy
    except MeterMissing:
        return None


def _timed(model: Micromodel, dtype: DType, bundle: Bundle, threads: int, place: Place) -> Sample:
    with Worker(bundle, threads, place) as worker:
        warm_up(worker)
        pilot_s = statistics.median(worker.times(LEAST_CALLS))
        calls = max(LEAST_CALLS, min(MOST_CALLS, int(TIMED_S / ROUNDS / pilot_s)))
        call_s = min(statistics.median(worker.times(calls)) for _ in range(ROUNDS))  # other programs only add time
    return Sample(
        name=model.name, dtype=dtype, op_class=model.op_class, ops=model.ops, kernels=model.kernels, call_s=call_s
    )
