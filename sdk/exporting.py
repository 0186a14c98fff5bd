"""The contract of an exporter: a module in `exporters/`; its file name is the format's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import IO, Literal, Protocol, cast

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.bundle import Delegation, WeightPrecision
from edgekit.compression import CompressedModel, Progress, Quantization
from edgekit.errors import UnsupportedModel, reason_of
from edgekit.graph import module_path, op_nodes, source_line
from edgekit.processing import Arrays
from edgekit.quiet import quiet
from edgekit.types import FULL_PRECISION, DynamicDim, Precision, TensorSpec, Value


class Refusal(Value, frozen=True, kw_only=True):
    """Something in a model that a format cannot take: where, why, and what to do."""

    where: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.fix}"


CALIBRATION = "calibration.npz"  # of a saved job
OWN_NAMESPACES = ("aten", "prim", "prims", "higher_order", "_higher_order_ops")
Verdict = Literal["converts", "decomposed", "falls back", "needs a rewrite"]


class OpSupport(Value, frozen=True, kw_only=True):
    """What a format makes of one op of the traced program."""

    op: str  # "aten.conv2d.default"
    module: str  # path of the PyTorch module that calls it
    source: str | None  # "model.py:41"
    verdict: Verdict
    reason: str = ""
    fix: str = ""

    @property
    def place(self) -> str:
        """The module with the line, where the trace knows it."""
        return (self.module or "the model itself") + (f" ({self.source})" if self.source else "")


class Complaint(Value, frozen=True, kw_only=True):
    """Why an op does not simply convert."""

    verdict: Verdict
    reason: str
    fix: str = "write it with ops that convert: matmul, where, reshape, reductions over fixed sizes"


@dataclass(frozen=True, eq=False, kw_only=True)
class ExportJob:
    """All an exporter sees: a traced program and plain data, so that it can cross to a process of its own."""

    name: str  # of the model
    program: ExportedProgram  # after all passes; float weights
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic: tuple[DynamicDim, ...] = ()
    precision: Precision
    quantization: Quantization | None = None
    calibration: tuple[Arrays, ...] = ()
    keep_intermediates: bool = False

    @classmethod
    def of(
        cls, made: CompressedModel, program: ExportedProgram, precision: Precision, keep_intermediates: bool = False
    ) -> ExportJob:
        """The job of a model after its passes; `program` is the trace of that model."""
        return cls(
            name=made.model.name,
            program=program,
            inputs=made.model.inputs,
            outputs=made.model.outputs,
            dynamic=made.model.dynamic,
            precision=precision,
            quantization=made.quantization,
            calibration=made.calibration.samples if made.calibration else (),
            keep_intermediates=keep_intermediates,
        )

    def save(self, folder: Path) -> None:
        """Write the job into an empty folder.

        Raises `UnsupportedModel` for a program torch cannot store, and for ops that are not PyTorch's own: the process
        that reads it would not know them, and no format has kernels for them.
        """
        for node in op_nodes(self.program.graph):
            if getattr(node.target, "namespace", "aten") not in OWN_NAMESPACES:
                raise UnsupportedModel(
                    f"'{node.target}' in {module_path(node) or 'the model'} ({source_line(node) or 'no source line'}) "
                    "is a custom op: write it with PyTorch's own ops, or leave it out of the exported part"
                )
        facts = _Facts(**{field: getattr(self, field) for field in _Facts.__struct_fields__})
        (folder / "job.json").write_text(facts.to_json(), encoding="utf-8")
        save_samples(folder / CALIBRATION, self.calibration)
        with (folder / "program.pt2").open("wb", buffering=0) as stream:
            sink = _Sink(stream)
            try:
                with quiet():
                    torch.export.save(self.program, cast(IO[bytes], sink))  # it only calls `write`
            except Exception as error:  # torch.export raises dozens of types
                reason = reason_of(error)
                raise UnsupportedModel(f"torch.export cannot store the traced '{self.name}': {reason}") from error
        if sink.error:
            raise sink.error

    @classmethod
    def load(cls, folder: Path) -> ExportJob:
        """The inverse of `save`, for folders that this very program wrote: reading a .pt2 can run code."""
        facts = _Facts.from_json((folder / "job.json").read_bytes())
        return cls(
            program=torch.export.load(folder / "program.pt2"),
            calibration=load_samples(folder / CALIBRATION),
            **{field: getattr(facts, field) for field in _Facts.__struct_fields__},
        )


def save_samples(path: Path, samples: Sequence[Arrays]) -> None:
    """Write samples for a process of our own."""
    named = {f"{i}.{name}": array for i, sample in enumerate(samples) for name, array in sample.items()}
    np.savez(path, **named)  # type: ignore[arg-type]


def load_samples(path: Path) -> tuple[Arrays, ...]:
    """The inverse of `save_samples`."""
    samples: dict[int, Arrays] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            index, _, name = key.partition(".")
            samples.setdefault(int(index), {})[name] = stored[key]
    return tuple(samples[index] for index in sorted(samples))


class _Sink:
    """Remembers the first failed write instead of raising: torch's writer aborts the process when one fails."""

    def __init__(self, stream: RawIOBase) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        """Write all of it, or note why not."""
        view = memoryview(content)
        while self.error is None and len(view):
            try:
                view = view[self._stream.write(view) :]
            except OSError as error:
                self.error = error
        return memoryview(content).nbytes


class _Facts(Value, frozen=True, kw_only=True):
    """The part of a job that is JSON."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic: tuple[DynamicDim, ...]
    precision: Precision
    quantization: Quantization | None
    keep_intermediates: bool


def found_precision(
    asked: Precision, sizes: Mapping[str, int], quantized: int, floating: int, instead: str = "fp32"
) -> WeightPrecision:
    """What a file was found to hold: weight bytes by dtype, and ops with narrow and with float weights.

    Raises `UnsupportedModel` when fewer bits were asked for and no op has them; `instead` is what to take then.
    """
    if asked not in (*FULL_PRECISION, "fp16") and not quantized:
        raise UnsupportedModel(
            f"{asked} was asked for, and not one op of this model could be quantised; its weights stay "
            f"{', '.join(sizes)}: take --precision {instead}"
        )
    return WeightPrecision(name=asked, weight_bytes=dict(sizes), quantized_ops=quantized, float_ops=floating)


class Exported(Value, frozen=True, kw_only=True):
    """What an exporter wrote into the folder it was given. Paths are relative to that folder."""

    path: str  # the model file
    external_data: tuple[str, ...] = ()
    precision: WeightPrecision  # read back from the file
    inputs: tuple[TensorSpec, ...] | None = None  # where the file takes another layout than the model
    delegation: Delegation | None = None  # where the format fixes it ahead of time; else the runtime finds out
    intermediates: tuple[str, ...] = ()  # files that help debugging, written when `keep_intermediates` asks


def op_support(
    program: ExportedProgram, lowered: ExportedProgram, complain: Callable[[Node], Complaint | None]
) -> list[OpSupport]:
    """One entry for each op of `program`, and for each op of `lowered` (after decompositions) with a complaint.

    An op is "decomposed" when `lowered` has none of its kind left. Modules and source lines survive decomposition.
    """
    left = {str(node.target) for node in op_nodes(lowered.graph)}
    found = [
        _support(node, Complaint(verdict="converts" if str(node.target) in left else "decomposed", reason="", fix=""))
        for node in op_nodes(program.graph)
    ]
    for node in op_nodes(lowered.graph):
        if complaint := complain(node):
            entry = _support(node, complaint)
            twin = next(
                (i for i, e in enumerate(found) if _place(e) == _place(entry) and e.verdict == "converts"), None
            )
            if twin is None:
                found.append(entry)
            else:
                found[twin] = entry
    return found


def _support(node: Node, complaint: Complaint) -> OpSupport:
    return OpSupport(
        op=str(node.target),
        module=module_path(node),
        source=source_line(node),
        verdict=complaint.verdict,
        reason=complaint.reason,
        fix=complaint.fix,
    )


def _place(entry: OpSupport) -> tuple[str, str, str | None]:
    return entry.op, entry.module, entry.source


class Exporter(Protocol):
    """What a module in `exporters/` offers. It runs in a process of its own and imports its toolchain in functions."""

    RUNTIME: str  # the runtime that verifies what it writes
    RUNTIME_VERSION_RANGE: str
    DISTRIBUTIONS: tuple[str, ...]  # packages whose versions the manifest records
    REPRO: str  # the plain call of the toolchain on `program`, for scripts that reproduce a failure
    PRECISIONS: tuple[Precision, ...]  # that it can realise; "lossless" needs a single file that opens at any path
    Options: type[Value]

    def reject(self, job: ExportJob, options: Value) -> list[Refusal]:
        """What this format cannot express, and options that do not fit, before any work and without its toolchain.

        The float model that a compressed one is timed against is exported with the same options and not asked about:
        `export` ignores those that a float file has no place for.
        """

    def support(self, job: ExportJob) -> list[OpSupport]:
        """What becomes of every op, without converting; see `op_support`."""

    def export(self, job: ExportJob, out: Path, options: Value, progress: Progress) -> Exported:
        """Write the model into `out`. Raises `UnsupportedModel`, `ToolchainMissing`."""

    def expose(self, job: ExportJob, artifact: Path, out: Path, options: Value) -> Mapping[str, TensorSpec]:
        """Write a model like `artifact` at `out` that also returns module outputs: module path -> its tensor."""
