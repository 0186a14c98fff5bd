"""Is an int8 TFLite file integers throughout, and are they LiteRT's?

Every op runs in numpy, with integers only, on what LiteRT's own reference kernels gave it, and must write what they
write: so the first op that differs is named, and not those behind it. What applications run (XNNPACK) rescales in float
and may round other values up; how far that takes the outputs is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import InvalidInput
from edgekit.npu.integer.execution import kernels, refusal, run_op
from edgekit.npu.integer.graph import IntegerGraph, Op, read_graph
from edgekit.parity import sqnr_db
from edgekit.processing import Array, Arrays
from edgekit.runtimes._litert_steps import Border, Steps, border, default_kernels, reference_kernels
from edgekit.types import Value

SAMPLES = 4  # golden ones; numpy takes seconds for an image


class OpDifference(Value, frozen=True, kw_only=True):
    """An op whose result is not LiteRT's."""

    index: int  # in execution order
    op: str
    module: str | None
    steps: int  # at most
    share: float  # of the values that differ


class OutputSteps(Value, frozen=True, kw_only=True):
    """One output of the file."""

    name: str
    xnnpack_steps: int  # at most, between reference kernels and those that applications run
    sqnr_db: float  # of the integers to PyTorch's answers


class IntegerCheck(Value, frozen=True, kw_only=True):
    """What was found in a file."""

    ops: dict[str, int]  # by type
    islands: tuple[str, ...]  # why an op is none in integers; nothing is computed where there is any
    samples: int
    values: int  # that were compared
    differences: tuple[OpDifference, ...]  # in execution order
    outputs: tuple[OutputSteps, ...]
    max_steps: int  # that an op may differ by
    ok: bool
    misses: tuple[str, ...]  # one sentence for each reason


def integer_check(bundle: Bundle, *, max_steps: int = 0, samples: int = SAMPLES) -> IntegerCheck:
    """Hold a bundle's file against LiteRT on its golden samples. Raises `InvalidInput` for another format."""
    if max_steps < 0 or samples < 1:
        raise InvalidInput(f"steps count from 0 on and samples from 1 on, not {max_steps} and {samples}")
    if bundle.artifact.format != "tflite":
        raise InvalidInput(
            f"'{bundle.path}' holds {bundle.artifact.format}, and integers are checked in TFLite files: export with "
            "--format tflite --precision int8, or for an Ethos-U NPU"
        )
    graph, known = read_graph(bundle.artifact_path.read_bytes()), kernels()
    islands = tuple(reason for op in graph.ops if (reason := refusal(op, known)))
    golden = [] if islands else list(islice(bundle.golden(), samples))
    edge = None if islands else border(bundle)
    given = [edge.encode(feeds) for feeds, _ in golden] if edge else []
    found = list(map(reference_kernels(bundle), given)) if given else []
    differences = _differences(graph, given, found) if given else ()
    misses = (*islands, *_missed(differences, max_steps))
    return IntegerCheck(
        ops=dict(Counter(op.kind for op in graph.ops).most_common()),
        islands=islands,
        samples=len(given),
        values=sum(value.size for steps in found for value in steps.values()),
        differences=differences,
        outputs=_outputs(bundle, edge, given, found, [answers for _, answers in golden]) if edge else (),
        max_steps=max_steps,
        ok=not misses,
        misses=misses,
    )


def _missed(differences: Sequence[OpDifference], max_steps: int) -> list[str]:
    beyond = [each for each in differences if each.steps > max_steps]
    return [
        f"op {each.index}, {each.op}{f' in module {each.module!r}' if each.module else ''}, differs from LiteRT by up "
        f"to {each.steps} steps in {each.share:.2%} of its values; it is the first of {len(beyond)} such ops"
        for each in beyond[:1]
    ]


def _differences(graph: IntegerGraph, given: Sequence[Steps], found: Sequence[Steps]) -> tuple[OpDifference, ...]:
    """Each op on LiteRT's own values; those that write something else."""
    known = kernels()
    constants = {each.index: each.constant for each in graph.tensors if each.constant is not None}
    differing = []
    for index, op in enumerate(graph.ops):
        apart = np.concatenate([_apart(op, run_op(op, constants | feeds | steps, known), steps)
                                for feeds, steps in zip(given, found, strict=True)])  # fmt: skip
        if apart.any():
            differing.append(
                OpDifference(
                    index=index,
                    op=op.kind,
                    module=op.module,
                    steps=int(apart.max()),
                    share=float((apart > 0).mean()),
                )
            )
    return tuple(differing)


def _apart(op: Op, made: Sequence[Array], steps: Steps) -> Array:
    pairs = zip(op.outputs, made, strict=True)
    return np.concatenate([np.abs(value.astype(np.int64) - steps[each.index]).ravel() for each, value in pairs])


def _outputs(
    bundle: Bundle, edge: Border, given: Sequence[Steps], found: Sequence[Steps], expected: Sequence[Arrays]
) -> tuple[OutputSteps, ...]:
    by_default = list(map(default_kernels(bundle), given))
    judged = []
    for name, tensor in edge.outputs.items():
        ours, theirs = (np.stack([steps[tensor] for steps in run]) for run in (found, by_default))
        judged.append(
            OutputSteps(
                name=name,
                xnnpack_steps=int(np.abs(ours.astype(np.int64) - theirs).max(initial=0)),
                sqnr_db=sqnr_db(np.stack([answers[name] for answers in expected]), edge.decode(name, ours)),
            )
        )
    return tuple(judged)
