"""Run a bundle in its own runtime and hold its answers against PyTorch's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle import Bundle
from edgekit.decoding import replay
from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.lossless_artifact import PackedFile
from edgekit.parity import TOLERANCES, Parity, Tolerance, compare
from edgekit.place import HERE, Place, open_at
from edgekit.processing import Array, Arrays, logits_output
from edgekit.session import Session
from edgekit.types import DynamicDim, TensorSpec

SEED = 0


@dataclass(frozen=True, eq=False)
class References:
    """Inputs with PyTorch's outputs: real samples decide, synthetic ones must stay sane."""

    real: tuple[tuple[Arrays, Arrays], ...]
    synthetic: tuple[tuple[Arrays, Arrays], ...]


def verify(
    bundle: Bundle | str | Path, *, tolerance: Tolerance | None = None, threads: int = 1, place: Place = HERE
) -> Parity:
    """Check a bundle's files, then run its golden samples and compare with PyTorch's stored outputs. Needs no torch.

    A packed model file must hold the one that was exported: its sha256 is in the manifest.
    """
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    references = References(tuple(found.golden()), ())
    check_unpacked(found)
    return judge(found, references, tolerance or stored_tolerance(found), threads=threads, place=place)


def check_unpacked(bundle: Bundle) -> None:
    """Raise `BundleCorrupt` unless a packed model file holds the file that was exported, bit by bit."""
    if plain := bundle.artifact.unpacked:
        whole = hashlib.sha256()
        for piece in PackedFile.open(bundle.artifact_path).content():
            whole.update(piece.data)
        if whole.hexdigest() != plain.sha256:
            raise BundleCorrupt(f"'{bundle.artifact_path}' does not hold the '{plain.path}' that was exported")


def judge(
    bundle: Bundle, references: References, tolerance: Tolerance, *, threads: int = 1, place: Place = HERE
) -> Parity:
    """Run all reference inputs and compare."""
    with open_at(place, bundle, threads) as session:
        actual = [session.run(feeds) for feeds, _ in references.real]
        synthetic = [(expected, _answer(session, feeds)) for feeds, expected in references.synthetic]
        golden_run = replay(session, bundle, tolerance)
    parity = compare(
        [expected for _, expected in references.real],
        actual,
        tolerance,
        synthetic=synthetic,
        logits=logits_output(bundle.manifest.postprocess),
        inner=() if tolerance.synthetic else _cache_entries(bundle),
    )
    if golden_run is None:
        return parity
    missed = golden_run.miss(tolerance)
    misses = (*parity.misses, *((missed,) if missed else ()))
    return msgspec.structs.replace(parity, golden_run=golden_run, misses=misses, ok=not misses)


def _answer(session: Session, feeds: Arrays) -> Arrays | InvalidInput:
    """The runtime's answer; its error where it cannot compute with inputs that nobody took from real data."""
    try:
        return session.run(feeds)
    except InvalidInput as error:
        return error


def _cache_entries(bundle: Bundle) -> list[str]:
    """A language model's outputs that go into its cache; where arithmetic is not float, its answers judge them.

    Values of deep layers have a few large channels: on Gemma 3 270M in dynamic int8 they fall to 10.7 dB, while the
    logits keep 26 and every token that PyTorch is sure of.
    """
    return [spec.name for spec in bundle.manifest.outputs if bundle.manifest.generation and spec.name != "logits"]


def make_references(
    reference: Callable[[Arrays], Arrays],
    inputs: Sequence[TensorSpec],
    dynamic: Sequence[DynamicDim],
    samples: Sequence[Arrays],
    *,
    state: Sequence[str] = (),
) -> References:
    """Ask PyTorch for the outputs of the real samples and of the synthetic inputs drawn around them.

    `state` names inputs that hold what the model itself computed before, as a KV cache does: nothing else comes there.
    """
    shaped = [fit(sample, inputs, dynamic) for sample in samples]
    edges = synthetic_inputs(inputs, dynamic, shaped, state=state)
    return References(
        tuple((feeds, reference(feeds)) for feeds in shaped), tuple((feeds, reference(feeds)) for feeds in edges)
    )


def synthetic_inputs(
    inputs: Sequence[TensorSpec], dynamic: Sequence[DynamicDim], samples: Sequence[Arrays], *, state: Sequence[str] = ()
) -> list[Arrays]:
    """Random values in the samples' range, zeros, ten times that range, and the ends of every dynamic size.

    Inputs of `state` keep the first sample's values but among zeros.
    """
    rng = np.random.default_rng(SEED)
    model = samples[0]
    low = {n: min(s[n].min().item() for s in samples) for n in model}
    high = {n: max(s[n].max().item() for s in samples) for n in model}

    def draw(like: Array, name: str, factor: float = 1.0) -> Array:
        if name in state:
            return like
        if like.dtype.kind == "f":
            most = float(np.finfo(like.dtype).max)
            ends = np.clip([low[name] * factor, high[name] * factor], -most / 2, most / 2)
            drawn = np.asarray(rng.uniform(ends[0], ends[1], like.shape))
        else:
            drawn = np.asarray(rng.integers(int(low[name]), int(high[name]), like.shape, endpoint=True))
        return drawn.astype(like.dtype)

    made = [{n: draw(a, n) for n, a in model.items()}, {n: np.zeros_like(a) for n, a in model.items()}]
    if any(array.dtype.kind == "f" for name, array in model.items() if name not in state):
        made.append({n: draw(a, n, 10.0) for n, a in model.items()})
    for dim in dynamic:
        for size in (dim.minimum, dim.maximum):
            made.append({n: _resized(a, spec, dim, size) for (n, a), spec in zip(model.items(), inputs, strict=True)})
    return made


def fit(sample: Arrays, inputs: Sequence[TensorSpec], dynamic: Sequence[DynamicDim]) -> Arrays:
    """The sample in the declared order, repeated along axis 0 where the model has a fixed batch above 1."""
    fitted: Arrays = {}
    for spec in inputs:
        array = sample[spec.name]
        if spec.shape and isinstance(spec.shape[0], int) and array.shape[0] < spec.shape[0]:
            array = np.repeat(array, -(-spec.shape[0] // array.shape[0]), axis=0)[: spec.shape[0]]
        for dim in dynamic:
            array = _resized(array, spec, dim, dim.fitting(_size(array, spec, dim)))
        fitted[spec.name] = np.ascontiguousarray(array)
    return fitted


def _size(array: Array, spec: TensorSpec, dim: DynamicDim) -> int:
    name = dim.axis_name
    sizes: list[int] = [array.shape[axis] for axis, size in enumerate(spec.shape) if size == name]
    return min([dim.maximum, *sizes])


def _resized(array: Array, spec: TensorSpec, dim: DynamicDim, size: int) -> Array:
    """Tile and cut along the axes that the dynamic size names."""
    for axis, name in enumerate(spec.shape):
        if name == dim.axis_name:
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return array


def stored_tolerance(bundle: Bundle) -> Tolerance:
    """The gate a bundle was exported with, or that of its precision."""
    parity = bundle.manifest.parity
    return parity.tolerance if parity else TOLERANCES[bundle.manifest.precision.name]
