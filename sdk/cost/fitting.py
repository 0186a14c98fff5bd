"""Fit the roofline of one unit and one runtime to measured times of whole models.

Few numbers, all positive since they are fitted as logarithms: one rate per class of op, shared by all dtypes but for a
factor; one memory bandwidth; per dtype an overhead per op and per call. Each starts at a guess and is drawn back to it
weakly, so that what the data says nothing about stays sensible. Errors are relative and a model that is far off counts
less (soft L1, by iteratively reweighted Gauss-Newton).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from edgekit.cost.kernels import Work
from edgekit.cost.latency import ASSUMED, Numbers, traffic_bytes
from edgekit.profile import OpClass
from edgekit.types import DType, Value

Floats = NDArray[np.float64]
CLASSES: tuple[OpClass, ...] = get_args(OpClass)
DRAW = 0.3  # how strongly a logarithm is drawn back to its guess, beside relative errors of single models
SCALE = 0.3  # relative error from which a model counts less
STEPS = 40
GUESS_OPS_PER_S, GUESS_BYTES_PER_S, GUESS_OP_S, GUESS_CALL_S = 1e13, 40e9, 2e-6, 1e-4
TEST_SHARE = 0.3  # of the families, held out at a time


class Sample(NamedTuple):
    """One measured model."""

    name: str
    family: str  # is held out as a whole: its members share their layers
    numbers: Numbers
    work: Work
    seconds: float


class Hardware(NamedTuple):
    """What is known of a unit before fitting."""

    channel_multiple: int
    on_chip_bytes: float


class Fit(Value, frozen=True, kw_only=True):
    """What was fitted for one dtype."""

    rates: dict[OpClass, float]  # operations per second
    ranges: dict[OpClass, tuple[float, float]]  # padded operations of the kernels seen, smallest and largest
    bytes_per_s: float
    op_overhead_s: float
    call_overhead_s: float


class HeldOut(Value, frozen=True, kw_only=True):
    """How far predictions were off for models that were not fitted on, each as often as it was held out."""

    graphs: int
    families: int
    median: float  # of the absolute relative errors
    p90: float
    bias: float  # median of predicted over measured
    spearman: float  # of measured times and mean predictions


class _Table:
    """All kernels of all samples in arrays, and the total time that parameters give every sample."""

    def __init__(self, samples: Sequence[Sample], hardware: Hardware) -> None:
        self.dtypes: list[DType] = list(dict.fromkeys(sample.numbers.dtype for sample in samples))
        kernels = [(sample, kernel) for sample in samples for kernel in sample.work.kernels]
        self.kind = np.array([CLASSES.index(kernel.op_class) for _, kernel in kernels])
        self.dtype = np.array([self.dtypes.index(sample.numbers.dtype) for sample, _ in kernels])
        self.ops = np.array([kernel.padded_ops(hardware.channel_multiple) for _, kernel in kernels], float)
        self.bytes = np.array([traffic_bytes(k, sample.numbers, hardware.on_chip_bytes) for sample, k in kernels])
        self.starts = np.cumsum([0, *(len(sample.work.kernels) for sample in samples)])[:-1]
        self.boundary = np.array([sample.work.boundary * sample.numbers.activation_bytes for sample in samples])
        self.of_sample = np.array([self.dtypes.index(sample.numbers.dtype) for sample in samples])

    def seconds(self, log: Floats) -> Floats:
        rates, factors, op, call, bandwidth = self.parts(np.exp(log))
        compute = self.ops / (rates[self.kind] * factors[self.dtype])
        kernels = op[self.dtype] + np.maximum(compute, self.bytes / bandwidth)
        total: Floats = np.add.reduceat(kernels, self.starts) + call[self.of_sample] + self.boundary / bandwidth
        return total

    def parts(self, values: Floats) -> tuple[Floats, Floats, Floats, Floats, float]:
        """Rates by class, and by dtype the factor, the overhead of an op and of a call; the bandwidth."""
        many = len(self.dtypes)
        rates, factors, op, call, rest = np.split(values, np.cumsum([len(CLASSES), many, many, many]))
        return rates, factors, op, call, float(rest[0])

    def guess(self) -> Floats:
        many = len(self.dtypes)
        values = [
            *(ASSUMED[kind] for kind in CLASSES),
            *[GUESS_OPS_PER_S] * many,
            *[GUESS_OP_S] * many,
            *[GUESS_CALL_S] * many,
            GUESS_BYTES_PER_S,
        ]
        return np.log(values)


def fit(samples: Sequence[Sample], hardware: Hardware) -> dict[DType, Fit]:
    """One fit for each dtype among the samples; they share the ratios of classes and the bandwidth."""
    table = _Table(samples, hardware)
    log = _solve(table, np.log([sample.seconds for sample in samples]))
    rates, factors, op, call, bandwidth = table.parts(np.exp(log))
    found: dict[DType, Fit] = {}
    for index, dtype in enumerate(table.dtypes):
        mine = {kind: table.ops[(table.kind == at) & (table.dtype == index)] for at, kind in enumerate(CLASSES)}
        seen = {kind: ops for kind, ops in mine.items() if len(ops)}
        found[dtype] = Fit(
            rates={kind: float(rates[CLASSES.index(kind)] * factors[index]) for kind in seen},
            ranges={kind: (float(ops.min()), float(ops.max())) for kind, ops in seen.items()},
            bytes_per_s=bandwidth,
            op_overhead_s=float(op[index]),
            call_overhead_s=float(call[index]),
        )
    return found


def held_out(samples: Sequence[Sample], hardware: Hardware, splits: int, seed: int = 0) -> dict[DType, HeldOut]:
    """Errors on families left out, over seeded random splits of 70 to 30 in each of which all dtypes are fitted."""
    families = sorted({sample.family for sample in samples})
    rng = np.random.default_rng(seed)
    predicted: dict[int, list[float]] = {}
    for _ in range(splits):
        out = set(rng.permutation(families)[: max(1, round(TEST_SHARE * len(families)))])
        train = [sample for sample in samples if sample.family not in out]
        known = {sample.numbers.dtype for sample in train}
        test = [i for i, sample in enumerate(samples) if sample.family in out and sample.numbers.dtype in known]
        if not train or not test:
            continue
        fitted = _Table(train, hardware)
        log = _solve(fitted, np.log([sample.seconds for sample in train]))
        asked = _Table([samples[i] for i in test], hardware)
        for i, seconds in zip(test, asked.seconds(_reordered(log, fitted, asked)), strict=True):
            predicted.setdefault(i, []).append(float(seconds))
    by_dtype: dict[DType, list[tuple[str, float, list[float]]]] = {}
    for i in sorted(predicted):
        sample = samples[i]
        by_dtype.setdefault(sample.numbers.dtype, []).append((sample.family, sample.seconds, predicted[i]))
    return {dtype: errors(found) for dtype, found in by_dtype.items()}


def errors(found: Sequence[tuple[str, float, list[float]]]) -> HeldOut:
    """How far guesses are off: for each model its family, its measured seconds and what was predicted for it."""
    ratios = np.array([each / seconds for _, seconds, guesses in found for each in guesses])
    means = [math.exp(float(np.mean(np.log(guesses)))) for _, _, guesses in found]
    return HeldOut(
        graphs=len(found),
        families=len({family for family, _, _ in found}),
        median=float(np.median(np.abs(ratios - 1))),
        p90=float(np.quantile(np.abs(ratios - 1), 0.9)),
        bias=float(np.median(ratios)),
        spearman=spearman(means, [seconds for _, seconds, _ in found]),
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank. 0 where either is constant."""
    ranks = [_ranks(np.asarray(values, float)) for values in (first, second)]
    left, right = (rank - rank.mean() for rank in ranks)
    size = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / size if size else 0.0


def _solve(table: _Table, target: Floats) -> Floats:
    """Reweighted Levenberg-Marquardt on logarithms of times, with the guess as a weak second aim."""
    guess = table.guess()
    log, damping = guess.copy(), 1e-2

    def loss(at: Floats) -> float:
        error = np.log(table.seconds(at)) - target
        robust = 2 * SCALE**2 * (np.sqrt(1 + (error / SCALE) ** 2) - 1)
        return float(robust.sum() + DRAW**2 * ((at - guess) ** 2).sum())

    best = loss(log)
    for _ in range(STEPS):
        now = np.log(table.seconds(log))
        slope = np.stack([(np.log(table.seconds(log + 1e-4 * unit)) - now) / 1e-4 for unit in np.eye(len(log))], axis=1)
        error = now - target
        weight = 1 / np.sqrt(1 + (error / SCALE) ** 2)
        normal = slope.T @ (weight[:, None] * slope) + DRAW**2 * np.eye(len(log))
        push = slope.T @ (weight * error) + DRAW**2 * (log - guess)
        step = np.linalg.solve(normal + damping * np.eye(len(log)), -push)
        reached = loss(log + step)
        if reached < best:
            done = best - reached < 1e-7 * best
            log, best, damping = log + step, reached, damping / 3
            if done:
                break
        else:
            damping *= 4
    return log


def _reordered(log: Floats, fitted: _Table, asked: _Table) -> Floats:
    """The parameters for the dtypes of another table, which are among the fitted ones."""
    rates, factors, op, call, bandwidth = fitted.parts(log)
    order = [fitted.dtypes.index(dtype) for dtype in asked.dtypes]
    return np.concatenate([rates, factors[order], op[order], call[order], [bandwidth]])


def _ranks(values: Floats) -> Floats:
    order = np.argsort(values)
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    for value in np.unique(values):
        ranks[values == value] = ranks[values == value].mean()
    return ranks
