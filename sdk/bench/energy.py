"""How far the NVML energy counter can be trusted on this GPU: `edgekit bench energy`.

Its step and idle power come first. Then one load fills windows of ten seconds: each is read from the counter, and its
power is sampled in the same seconds and integrated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import msgspec

import edgekit
from edgekit.compression import Progress, silent
from edgekit.energy import Counter, Energy, MeterInfo, Snapshot, reading
from edgekit.energy_window import Run, Sync, seconds_each, take_window
from edgekit.errors import InvalidInput
from edgekit.report import energy_text
from edgekit.runtimes.meters.nvml import Gpu, Nvml
from edgekit.sampling import Sampler
from edgekit.types import Value

WINDOW_S = 10.0
REPEATS = 5
IDLE_S, REST_S = 10.0, 3.0
CADENCE_S = 5.0
SAMPLE_S = 0.02
SIDE = 8192  # of the matrices whose bf16 product is the load
WARM_PRODUCTS = 1000  # about two seconds on an H200: power settles
POWER: tuple[Literal["instant", "average"], ...] = ("instant", "average")  # NVML's two figures


class Cadence(Value, frozen=True, kw_only=True):
    """How often the counter moves, and what a look at it costs."""

    step_s: float  # median time between two steps
    longest_step_s: float
    step_j: float  # median
    read_s: float  # median time of one read


class Repeat(Value, frozen=True, kw_only=True):
    """One window under load, its joules of one product: by the counter, and by samples of power over the same calls."""

    counter: Energy
    sampled: dict[str, Energy]  # by NVML's figure of power

    def ratio(self, power: str) -> float:
        """The counter's joules over those of the samples."""
        return (self.counter.gross_j or 0.0) / (self.sampled[power].gross_j or 1.0)


class EnergyBench(Value, frozen=True, kw_only=True):
    """What was found of one GPU."""

    device: str
    versions: dict[str, str]
    idle_w: float  # over ten seconds with the matrices in memory
    cadence_idle: Cadence
    cadence_load: Cadence
    repeats: tuple[Repeat, ...]

    @property
    def spread(self) -> float:
        """Largest over smallest joules of one product over the repeats, less one."""
        each = [repeat.counter.gross_j or 0.0 for repeat in self.repeats]
        return max(each) / min(each) - 1


def run(repeats: int = REPEATS, progress: Progress = silent) -> EnergyBench:
    """Measure the first GPU. Raises `InvalidInput` without CUDA, `MeterMissing` without its counter."""
    import torch

    if not torch.cuda.is_available():
        raise InvalidInput("torch sees no CUDA device: this bench is of GPUs with an energy counter")
    left, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(left, right)

    def one() -> None:
        products(1)
        torch.cuda.synchronize()

    with Gpu() as gpu:
        progress("idle power and the counter's step")
        time.sleep(REST_S)
        first, start = gpu.joules(), time.monotonic()
        time.sleep(IDLE_S)
        idle_w = (gpu.joules() - first) / (time.monotonic() - start)
        idle = cadence(gpu.joules, lambda: None)
        progress("the counter's step under load")
        products(WARM_PRODUCTS)
        load = cadence(gpu.joules, one)
        found = []
        for number in range(repeats):
            progress(f"window {number + 1} of {repeats}")
            found.append(_repeat(gpu, products, torch.cuda.synchronize))
        return EnergyBench(
            device=gpu.name,
            versions={"torch": str(torch.__version__), "driver": gpu.driver(), "edgekit": edgekit.__version__},
            idle_w=idle_w,
            cadence_idle=idle,
            cadence_load=load,
            repeats=tuple(found),
        )


def cadence(joules: Callable[[], float], work: Callable[[], object], seconds: float = CADENCE_S) -> Cadence:
    """Read a counter as often as it can be read, with some work between, and note when it moves."""
    moved: list[tuple[float, float]] = []
    reads: list[float] = []
    last, end = joules(), time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        now = joules()
        reads.append(time.perf_counter() - before)
        if now != last:
            moved.append((before, now))
            last = now
        work()
    if len(moved) < 3:
        raise InvalidInput(f"the counter moved {len(moved)} times in {seconds:g} s: that is no cadence")
    steps = [after[0] - before[0] for before, after in pairwise(moved)]
    joule_steps = [after[1] - before[1] for before, after in pairwise(moved)]
    return Cadence(
        step_s=statistics.median(steps),
        longest_step_s=max(steps),
        step_j=statistics.median(joule_steps),
        read_s=statistics.median(reads),
    )


class _Both(Counter):
    """The counter, and the integrals of both figures of power, read together."""

    def __init__(self, gpu: Gpu, counter: Counter) -> None:
        self._counter, info = counter, counter.info
        sampled = msgspec.structs.replace(
            info, id="nvml power", provenance="measured.sampled", domains=POWER, update_period_s=SAMPLE_S
        )
        self._sampler = Sampler(sampled, lambda: {kind: gpu.watts(kind) for kind in POWER})

    @property
    def info(self) -> MeterInfo:
        return self._counter.info

    def of(self, power: str) -> MeterInfo:
        """The info under which only one figure of power counts."""
        return msgspec.structs.replace(self._sampler.info, id=f"nvml {power} power", domains=(power,))

    def read(self) -> Snapshot:
        counted, sampled = self._counter.read(), self._sampler.read()
        return msgspec.structs.replace(counted, joules=counted.joules | sampled.joules)

    def close(self) -> None:
        self._sampler.close()
        self._counter.close()


def _repeat(gpu: Gpu, products: Run, sync: Sync) -> Repeat:
    products(WARM_PRODUCTS)
    both = _Both(gpu, Nvml().open())
    try:
        window = take_window(both, products, seconds_each(products, sync), sync=sync, idle_s=0, least_s=WINDOW_S)
        return Repeat(
            counter=reading(both.info, window),
            sampled={power: reading(both.of(power), window) for power in POWER},
        )
    finally:
        both.close()


def cells(found: EnergyBench) -> list[tuple[str, str]]:
    """Label and text of every line, for people."""
    lines = [
        ("device", f"{found.device}, driver {found.versions['driver']}, torch {found.versions['torch']}"),
        ("idle", f"{found.idle_w:.1f} W"),
    ]
    for state, each in (("idle", found.cadence_idle), ("under load", found.cadence_load)):
        text = f"{1e3 * each.step_s:.1f} ms (longest {1e3 * each.longest_step_s:.1f}), {each.step_j:.3g} J"
        lines.append((f"step, {state}", f"{text}; one read takes {1e3 * each.read_s:.2f} ms"))
    for number, repeat in enumerate(found.repeats):
        ratios = ", ".join(f"over {power} power {repeat.ratio(power):.4f}" for power in POWER)
        lines.append((f"window {number + 1}", f"{energy_text(repeat.counter)}; {ratios}"))
    return [*lines, ("spread", f"{found.spread:.2%} between the least and the most of the repeats")]
