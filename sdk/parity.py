"""Does the artifact answer like PyTorch? The figures, and the gate each precision must pass.

Real samples decide. Synthetic ones (random, zeros, large range) must keep names, shapes and finiteness everywhere, and
must meet the gate too where the arithmetic is float; a calibrated int8 model saturates outside its range by design.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
import numpy as np

from edgekit.errors import InvalidInput
from edgekit.processing import Array, Arrays, softmax
from edgekit.types import Precision, Value

EXACT_DB = 200.0  # SQNR of equal tensors; float64 noise sits near 300 dB, float32 near 150
QUIET = 1e-3  # samples whose output is this much smaller than the loudest are rounding noise; their angle says nothing
CONFIDENT = 0.4  # top-1 is judged where PyTorch's own probability exceeds this; below it, ranks flip on any rounding


class Tolerance(Value, frozen=True, kw_only=True):
    """The least an artifact must reach. `None` does not gate."""

    cosine_min: float | None = None
    sqnr_db_min: float | None = None
    top1_agreement_min: float | None = None
    synthetic: bool = True  # whether random and edge inputs are held to the same figures


TOLERANCES: dict[Precision, Tolerance] = {
    # Same arithmetic in another order: rounding only. Measured 114 dB and cosine 1.0000 on the zoo.
    "fp32": Tolerance(cosine_min=0.9999, sqnr_db_min=60.0, top1_agreement_min=1.0),
    # The very file of fp32, stored in fewer bytes.
    "lossless": Tolerance(cosine_min=0.9999, sqnr_db_min=60.0, top1_agreement_min=1.0),
    # 11 significant bits give about 60 dB an operation; depth costs some. Large ranges overflow at 65504.
    "fp16": Tolerance(cosine_min=0.999, sqnr_db_min=30.0, top1_agreement_min=0.98, synthetic=False),
    # Good static int8 recipes reach 15 to 20 dB on conv nets; broken ones (clamps observed too early) give 4 to 6.
    "int8": Tolerance(sqnr_db_min=14.0, top1_agreement_min=0.95, synthetic=False),
    # Activations are scaled per call, so only weights lose bits: 18.8 dB and cosine 0.990 at worst on MiniLM.
    "int8-dynamic": Tolerance(cosine_min=0.98, sqnr_db_min=14.0, top1_agreement_min=0.95, synthetic=False),
    # The same weights with exact activations: 18 dB on efficientnet_lite0, 31 on MiniLM.
    "int8-weight-only": Tolerance(cosine_min=0.98, sqnr_db_min=15.0, top1_agreement_min=0.95, synthetic=False),
    # 16 levels a weight, a scale for 32 of them: 20 dB a layer at best, and depth costs some. Small language models
    # lose the most; the first tokens are judged too (`edgekit verify`).
    "w4a8": Tolerance(sqnr_db_min=5.0, synthetic=False),
}


def with_gates(tolerance: Tolerance, cosine_min: float | None, sqnr_db_min: float | None) -> Tolerance:
    """The tolerance with the gates that a user moved. Raises `InvalidInput` for a gate that is no number in range."""
    if cosine_min is not None:
        if not -1 <= cosine_min <= 1:
            raise InvalidInput(f"the least cosine must be between -1 and 1, not {cosine_min}")
        tolerance = msgspec.structs.replace(tolerance, cosine_min=cosine_min)
    if sqnr_db_min is not None:
        if not -EXACT_DB <= sqnr_db_min <= EXACT_DB:
            raise InvalidInput(f"the least SQNR must be between -200 and 200 dB, not {sqnr_db_min}")
        tolerance = msgspec.structs.replace(tolerance, sqnr_db_min=sqnr_db_min)
    return tolerance


class OutputParity(Value, frozen=True, kw_only=True):
    """One output tensor over all samples of one kind."""

    name: str
    max_abs: float
    max_rel: float
    cosine_min: float
    sqnr_db: float


class ModuleError(Value, frozen=True, kw_only=True):
    """How far one module's output is off, on one sample."""

    module: str
    sqnr_db: float


class GoldenReplay(Value, frozen=True, kw_only=True):
    """A language model's choice of every token of a golden run, each after PyTorch's own tokens."""

    tokens: int
    agreeing: int
    judged: int  # the tokens that the gate counts
    judged_agreeing: int
    first_difference: str | None  # "token 5 is 12 ' a' where PyTorch has 45 ' the'"

    def miss(self, tolerance: Tolerance) -> str | None:
        """The sentence for a gate that was missed."""
        least = tolerance.top1_agreement_min
        if least is None or not self.judged or self.judged_agreeing >= least * self.judged:
            return None
        return (
            f"golden run: {self.judged_agreeing} of {self.judged} tokens agree, the gate is {least:.3f}: "
            f"{self.first_difference}"
        )


class Parity(Value, frozen=True, kw_only=True):
    """PyTorch against the artifact in its runtime. Figures are over the real samples."""

    samples: int
    origin: Literal["real", "random"] = "real"  # of the samples
    synthetic_samples: int
    max_abs: float | None  # this and the next three are None when names or shapes already differ
    max_rel: float | None  # max_abs over the largest magnitude of the reference
    cosine_min: float | None  # the worst single sample
    sqnr_db: float | None  # signal power over error power, all samples together; 200 means equal
    worst_output: str
    outputs: tuple[OutputParity, ...]
    top1_agreement: float | None = None  # share of samples where PyTorch is confident
    top1_samples: int | None = None
    tolerance: Tolerance
    ok: bool
    misses: tuple[str, ...] = ()  # one sentence per missed gate
    first_divergent: str | None = None  # the first module in execution order that is off
    worst_modules: tuple[ModuleError, ...] = ()  # the ten that are furthest off, where parity failed
    golden_run: GoldenReplay | None = None  # of a language model


def sqnr_db(reference: Array, actual: Array) -> float:
    """Signal to quantisation-noise ratio, `10 log10(sum r^2 / sum (r - a)^2)`, in float64, within [-200, 200] dB."""
    signal, noise = _powers(reference, actual)
    if noise == 0:
        return EXACT_DB
    if signal == 0 or not np.isfinite(noise):
        return -EXACT_DB
    return float(np.clip(10 * np.log10(signal / noise), -EXACT_DB, EXACT_DB))


def cosine(reference: Array, actual: Array) -> float:
    """Cosine between two tensors seen as vectors; 1 for two zero vectors, 0 when only one is zero or not finite."""
    a, b = reference.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    if length == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.clip(a @ b / length, -1.0, 1.0)) if np.isfinite(length) else 0.0


def compare(
    expected: Sequence[Arrays],
    actual: Sequence[Arrays],
    tolerance: Tolerance,
    *,
    synthetic: Sequence[tuple[Arrays, Arrays | InvalidInput]] = (),
    logits: str | None = None,
    inner: Collection[str] = (),
) -> Parity:
    """Judge `actual` against `expected`, sample by sample; `logits` names an output whose argmax matters.

    Outputs in `inner` are a model's own state, as the entries of a KV cache: reported, and judged by what they do to
    the answers.

    Where PyTorch's own output is not finite, the artifact may be anything there. A runtime that cannot compute with
    made-up inputs gives its error as its answer: that is a miss too.
    """
    misses = [
        m for i, pair in enumerate(zip(expected, actual, strict=True)) for m in _form_misses(f"sample {i}", *pair)
    ]
    edge_misses = [m for i, pair in enumerate(synthetic) for m in _form_misses(f"synthetic sample {i}", *pair)]
    if misses:
        return _broken(len(expected), len(synthetic), tolerance, misses + edge_misses)
    outputs = tuple(_output(name, expected, actual) for name in expected[0])
    judged_outputs = tuple(output for output in outputs if output.name not in inner)
    worst = min(judged_outputs, key=lambda o: (o.sqnr_db, o.cosine_min))
    agreement, judged = _top1(expected, actual, logits) if logits else (None, None)
    misses = _gate_misses(judged_outputs, agreement, tolerance, "") + _deaf(expected, actual) + edge_misses
    answers = [answer for _, answer in synthetic if not isinstance(answer, InvalidInput)]
    if answers and tolerance.synthetic and not edge_misses:
        references = [reference for reference, _ in synthetic]
        edge = tuple(_output(name, references, answers) for name in references[0])
        misses += _gate_misses(edge, None, tolerance, " on synthetic inputs")
    return Parity(
        samples=len(expected),
        synthetic_samples=len(synthetic),
        max_abs=max(o.max_abs for o in judged_outputs),
        max_rel=max(o.max_rel for o in judged_outputs),
        cosine_min=min(o.cosine_min for o in judged_outputs),
        sqnr_db=worst.sqnr_db,
        worst_output=worst.name,
        outputs=outputs,
        top1_agreement=agreement,
        top1_samples=judged,
        tolerance=tolerance,
        ok=not misses,
        misses=tuple(misses),
    )


def _powers(reference: Array, actual: Array) -> tuple[float, float]:
    known = np.isfinite(reference)
    r, a = reference.astype(np.float64)[known], actual.astype(np.float64)[known]
    return float(np.sum(r * r)), float(np.sum((r - a) ** 2))


def _form_misses(where: str, expected: Arrays, actual: Arrays | InvalidInput) -> list[str]:
    if isinstance(actual, InvalidInput):
        return [f"{where}: {actual}"]
    if expected.keys() != actual.keys():
        return [f"{where}: outputs are {', '.join(actual)} where PyTorch has {', '.join(expected)}"]
    misses = []
    for name, reference in expected.items():
        answer = actual[name]
        if reference.shape != answer.shape:
            misses.append(f"{where}: output '{name}' has shape {list(answer.shape)}, PyTorch {list(reference.shape)}")
        elif not np.isfinite(answer[np.isfinite(reference)]).all():
            misses.append(f"{where}: output '{name}' has NaN or Inf where PyTorch has none")
    return misses


def _output(name: str, expected: Sequence[Arrays], actual: Sequence[Arrays]) -> OutputParity:
    pairs = [(e[name], a[name]) for e, a in zip(expected, actual, strict=True)]
    norms = [float(np.linalg.norm(e[np.isfinite(e)].astype(np.float64))) for e, _ in pairs]
    loud = [pair for pair, norm in zip(pairs, norms, strict=True) if norm >= QUIET * max(norms)]
    reference = np.concatenate([e.ravel() for e, _ in pairs])
    answer = np.concatenate([a.ravel() for _, a in pairs])
    known = np.isfinite(reference)
    error = np.abs(reference[known].astype(np.float64) - answer[known].astype(np.float64))
    largest = float(np.abs(reference[known].astype(np.float64)).max(initial=0.0))
    max_abs = float(error.max(initial=0.0))
    return OutputParity(
        name=name,
        max_abs=max_abs,
        max_rel=max_abs / largest if largest else max_abs,
        cosine_min=min(cosine(np.where(np.isfinite(e), e, 0), np.where(np.isfinite(e), a, 0)) for e, a in loud),
        sqnr_db=sqnr_db(reference, answer),
    )


def _top1(expected: Sequence[Arrays], actual: Sequence[Arrays], logits: str) -> tuple[float | None, int]:
    rows = np.concatenate([e[logits].reshape(-1, e[logits].shape[-1]) for e in expected]).astype(np.float64)
    answers = np.concatenate([a[logits].reshape(-1, a[logits].shape[-1]) for a in actual])
    confident = softmax(rows).max(axis=-1) > CONFIDENT
    if not confident.any():
        return None, 0
    agree = rows.argmax(axis=-1)[confident] == answers.argmax(axis=-1)[confident]
    return float(agree.mean()), int(confident.sum())


def _deaf(expected: Sequence[Arrays], actual: Sequence[Arrays]) -> list[str]:
    """A constant can have a high SQNR where an output has a large offset; it is still no answer."""
    return [
        f"output '{name}' is the same for every sample, PyTorch's is not"
        for name in expected[0]
        if not _constant([e[name] for e in expected]) and _constant([a[name] for a in actual])
    ]


def _constant(arrays: Sequence[Array]) -> bool:
    return all(np.array_equal(arrays[0], array, equal_nan=array.dtype.kind == "f") for array in arrays)


def _gate_misses(
    outputs: Sequence[OutputParity], agreement: float | None, tolerance: Tolerance, where: str
) -> list[str]:
    turned, noisy = min(outputs, key=lambda o: o.cosine_min), min(outputs, key=lambda o: o.sqnr_db)
    figures = (
        ("cosine", turned.cosine_min, tolerance.cosine_min, ".6f", turned.name),
        ("SQNR (dB)", noisy.sqnr_db, tolerance.sqnr_db_min, ".2f", noisy.name),
        ("top-1 agreement", agreement, tolerance.top1_agreement_min, ".3f", noisy.name),
    )
    return [
        f"{name}{where} is {value:{form}}, the gate is {least:{form}} (worst output '{output}')"
        for name, value, least, form, output in figures
        if value is not None and least is not None and value < least
    ]


def _broken(samples: int, synthetic: int, tolerance: Tolerance, misses: list[str]) -> Parity:
    shown = (*misses[:5], f"and {len(misses) - 5} more") if len(misses) > 5 else tuple(misses)
    return Parity(
        samples=samples,
        synthetic_samples=synthetic,
        max_abs=None,
        max_rel=None,
        cosine_min=None,
        sqnr_db=None,
        worst_output=misses[0].partition("'")[2].partition("'")[0],
        outputs=(),
        tolerance=tolerance,
        ok=False,
        misses=shown,
    )
