"""Measure what a device's profile cannot know: bandwidth, the rate of each kind of kernel, and what a call costs.

Micromodels run in the worker process that measures bundles too, so whatever place can start one can be calibrated.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.calibration_profile import Observed, Sample, calibrated
from edgekit.compression import Progress, silent
from edgekit.energy import Energy
from edgekit.errors import InvalidInput, MeterMissing, UnsupportedModel, unknown_name
from edgekit.inference import RUNTIMES
from edgekit.intervals import Interval, quantile_interval
from edgekit.measurement import HostState
from edgekit.meters import EnergyRequest
from edgekit.micromodels import PRECISION_OF, PRODUCTS, Micromodel, build, chains, micromodels
from edgekit.place import HERE, Place, Worker
from edgekit.planning import EXPORTERS
from edgekit.profile import DeviceProfile, RuntimeChoice
from edgekit.types import DType

ROUND_S, MOST_CALLS = 0.03, 1000  # of calls that give one value
QUICK = 0.1  # the quantile of a round's calls that it gives: other programs only add time
ROUNDS = 9  # the last so many give a model's time and its interval: what was slow to begin with drops out
STEADY = 0.05  # width of that interval, of the time, at which the model is done
MOST_S = 1.5  # of calls of a model whose times never settle
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
    found = observe(device, choice, jobs(choice.format, micromodels()), threads, place, progress)
    return calibrated(device, device.unit_of(choice), found), found


def jobs(format: str, models: Sequence[Micromodel]) -> list[Job]:
    """Each model in float32, and products in every narrower type that the format holds, with or without arithmetic."""
    floats: list[Job] = [(model, "float32") for model in models]
    return floats + [(m, dtype) for dtype in narrow_types(format) for m in models if m.op_class in PRODUCTS]


def narrow_types(format: str) -> list[DType]:
    """The types below float32 that models of a format can be in."""
    allowed = registry.load(EXPORTERS, format).PRECISIONS
    return [dtype for dtype, precision in PRECISION_OF.items() if dtype != "float32" and precision in allowed]


def observe(
    device: DeviceProfile, choice: RuntimeChoice, wanted: Sequence[Job], threads: int, place: Place, progress: Progress
) -> Observed:
    """Build and time chains for the overheads, then everything wanted; nothing is left on disk here.

    Memory and watts come last, beside the model that computes most.
    """
    lengths = chains()
    everything: list[Job] = [*((chain, "float32") for chain in lengths), *wanted]
    missing = [d for d in PRECISION_OF if d not in ("float32", *narrow_types(choice.format))]
    skipped = [f"{dtype}: {choice.format} models hold none" for dtype in missing]
    samples: list[Sample] = []
    built: list[Bundle] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        for number, (model, dtype) in enumerate(everything, 1):
            progress(f"{number} of {len(everything)}: {model.name}, {dtype}")
            try:
                bundle = build(model, choice.format, dtype, device, Path(scratch) / str(number))
            except UnsupportedModel as error:
                if model in lengths:  # without overheads nothing can be told of the rest
                    raise
                skipped.append(f"{model.name}, {dtype}: {error}")
                continue
            with Worker(bundle, threads, place) as worker:
                check_machine(device, worker.opening.state)
                samples.append(_timed(model, dtype, worker))
                built.append(bundle)
        progress("copy memory, and read the watts of work and of rest where a meter is")
        busiest = max(range(len(built)), key=lambda index: samples[index].ops * samples[index].kernels)
        with Worker(built[busiest], threads, place) as worker:
            opened, copied, energy = worker.opening, worker.bandwidth(threads), _energy(worker)
    return Observed(
        runtime=choice.name,
        runtime_version=opened.runtime_version,
        threads=threads,
        host=opened.state,
        energy=energy,
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
            f"the machine to measure is {host.machine}, and {device.title} is {device.family}: name the machine with "
            "-d ssh:user@host, or a profile of its kind"
        )
    if host.emulated:
        raise InvalidInput(f"the machine to measure is emulated: its times say nothing about {device.title}")


def steady_time(worker: Worker) -> tuple[float, Interval]:
    """A call's time once the last rounds agree on it, or their time is up: their median with its 95 % interval."""
    calls = max(1, min(MOST_CALLS, int(ROUND_S / min(worker.times(2)))))
    rounds: list[float] = []
    spent = 0.0
    while True:
        times = worker.times(calls)
        rounds, spent = [*rounds, float(np.quantile(times, QUICK))][-ROUNDS:], spent + sum(times)
        found = quantile_interval(rounds, 0.5)  # None below six
        steady = found and len(rounds) == ROUNDS and found.high - found.low <= STEADY * found.low
        if found and (steady or spent >= MOST_S):
            return statistics.median(rounds), found


def _energy(worker: Worker) -> Energy:
    """What the machine's best meter reads of calls in a row and of the time around them, or why none does."""
    try:
        return worker.energy(EnergyRequest(mode="measured")).energy
    except MeterMissing as error:
        return Energy(provenance="unavailable", reason=str(error))


def _timed(model: Micromodel, dtype: DType, worker: Worker) -> Sample:
    call_s, interval = steady_time(worker)
    return Sample(
        name=model.name,
        dtype=dtype,
        op_class=model.op_class,
        ops=model.ops,
        kernels=model.kernels,
        call_s=call_s,
        call_ci_s=interval,
    )
