"""From a traced program to one whose pieces an Ethos-U runs, and what Arm's TOSA reference model answers for them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from edgekit.bundle import CompilerEstimate
from edgekit.compiling import named
from edgekit.compression import Progress
from edgekit.errors import EdgekitError, UnsupportedModel, reason_of
from edgekit.exporters._executorch_delegation import PARTITION_CALL
from edgekit.exporters.compilers import _vela_program
from edgekit.exporting import ExportJob
from edgekit.processing import Arrays
from edgekit.profile import VelaTarget

FRAME = re.compile(r'File "([^"]+)", line (\d+)')
DUMPS = "tosa"  # relative, since the .pte keeps it: no path of this machine may be left in a file
LEAST_SCALE = 2**-16  # as Arm's own
SHARED = "sram"  # pieces run one after another and share it; weights and what lies between pieces add up


@dataclass(frozen=True, eq=False, kw_only=True)
class Piece:
    """A part of the program that the NPU runs at one call."""

    lowered: Any  # LoweredBackendModule: what it was, and the stream that Vela made
    tosa: bytes  # the flatbuffer that Vela read
    estimate: CompilerEstimate


@dataclass(frozen=True, eq=False, kw_only=True)
class Lowered:
    """A program in ExecuTorch's edge dialect, with calls of the NPU."""

    edge: Any  # EdgeProgramManager
    pieces: Mapping[str, Piece]  # by the name of the submodule that is called
    reasons: Mapping[str, str]  # node -> why the partitioner left it out

    @property
    def program(self) -> ExportedProgram:
        """The program as it is before memory is planned."""
        found: ExportedProgram = self.edge.exported_program()
        return found


def lower(job: ExportJob, target: VelaTarget, folder: Path, progress: Progress) -> Lowered:
    """Quantise with Arm's quantizer on the calibration samples, and lower. `folder` takes what lies in between.

    Raises `UnsupportedModel` with the backend's reason.
    """
    from executorch.backends.arm.ethosu import EthosUCompileSpec
    from executorch.exir import to_edge_transform_and_lower

    spec = EthosUCompileSpec(
        target.accelerator_config, system_config=target.system_config, memory_mode=target.memory_mode
    ).dump_intermediate_artifacts_to(DUMPS)
    with contextlib.chdir(folder):
        try:
            program = _quantised(job, spec, progress)
            progress("lower with ExecuTorch's Arm backend")
            partitioner = _partitioner(spec)
            edge = to_edge_transform_and_lower(program, partitioner=[partitioner])
        except EdgekitError:
            raise
        except Exception as error:  # the backend raises its own, exir's, torch's and Python's types
            raise _refusal(job.name, error) from error
    progress("compile each piece once more, to see which is which")
    return Lowered(edge=edge, pieces=_pieces(edge, target, folder / DUMPS), reasons=partitioner.reasons())


def write(lowered: Lowered, path: Path) -> None:
    """Plan memory and write the .pte; `lowered` is used up. Raises `EdgekitError` unless it holds every stream."""
    with path.open("wb") as stream:
        lowered.edge.to_executorch().write_to_file(stream)
    content = path.read_bytes()
    for name, piece in lowered.pieces.items():
        if piece.lowered.processed_bytes not in content:
            raise EdgekitError(f"'{path}' does not hold what Vela made of {name}: please report it")


def reference_answers(lowered: Lowered, job: ExportJob, samples: tuple[Arrays, ...]) -> tuple[Arrays, ...]:
    """What the program answers, its pieces run by the TOSA reference model and the rest by PyTorch."""
    module = lowered.program.module(check_guards=False)
    answers = []
    for sample in samples:
        with _ReferenceModel(lowered.pieces), torch.no_grad():
            outputs = module(**{name: torch.from_numpy(array) for name, array in sample.items()})
        answers.append(named([each.numpy() for each in pytree.tree_leaves(outputs)], job))
    return tuple(answers)


def total(pieces: Mapping[str, Piece]) -> CompilerEstimate:
    """Vela's estimate of all pieces, one after another; what the CPU does is not in it."""
    estimates = [piece.estimate for piece in pieces.values()]
    memory: dict[str, int] = {}
    for each in estimates:
        for name, size in each.memory_bytes.items():
            memory[name] = max(memory.get(name, 0), size) if name == SHARED else memory.get(name, 0) + size
    return CompilerEstimate(
        cycles=sum(each.cycles for each in estimates),
        latency_s=sum(each.latency_s or 0 for each in estimates),
        memory_bytes=memory,
    )


def _quantised(job: ExportJob, spec: Any, progress: Progress) -> ExportedProgram:
    """The program with int8 weights, a scale for each channel, and int8 tensors between the ops."""
    from executorch.backends.arm.quantizer import EthosUQuantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = EthosUQuantizer(spec).set_global(_scheme())
    progress(f"calibrate for the NPU on {len(job.calibration)} samples")
    with torch.no_grad():
        prepared = prepare_pt2e(job.program.module(check_guards=False), quantizer)
        for sample in job.calibration:
            prepared(**{name: torch.from_numpy(array) for name, array in sample.items()})
        converted = convert_pt2e(prepared)
        args, kwargs = job.program.example_inputs
        return torch.export.export(converted, args, kwargs, strict=False)


def _scheme() -> Any:
    """Int8 everywhere, a weight scale for each channel, ranges from the least to the greatest value seen.

    Arm's own choice of ranges, by histogram, cuts tails: efficientnet_lite0 then names 83 % of the photographs that
    PyTorch is sure of as PyTorch does, where these name all (SQNR 20 dB in both).
    """
    from executorch.backends.arm.quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MinMaxObserver

    whole = get_symmetric_quantization_config(is_per_channel=True)
    ranges = MinMaxObserver.with_args(eps=LEAST_SCALE)
    activation = replace(whole.input_activation, observer_or_fake_quant_ctr=ranges)
    return replace(whole, input_activation=activation, output_activation=activation)


def _partitioner(spec: Any) -> Any:
    """Arm's partitioner, whose reports of what it leaves out can be read afterwards."""
    from executorch.backends.arm.ethosu import EthosUPartitioner

    class Reporting(EthosUPartitioner):  # type: ignore[misc]
        reporter: Any = None

        def _create_operator_support(self, program: ExportedProgram, reporter: Any) -> Any:
            self.reporter = reporter
            return super()._create_operator_support(program, reporter)

        def reasons(self) -> dict[str, str]:
            rejected = getattr(self.reporter, "_rejected_nodes", {})
            return {node.name: str(reason) for node, reason in rejected.items()}

    return Reporting(spec)


def _pieces(edge: Any, target: VelaTarget, folder: Path) -> dict[str, Piece]:
    """The NPU's pieces, each with the flatbuffer that it was made of: Vela makes the same stream of it once more."""
    program = edge.exported_program()
    calls = [node for node in program.graph.nodes if str(node.target) == PARTITION_CALL]
    lowered = {str(call.args[0].target): getattr(program.graph_module, call.args[0].target) for call in calls}
    found: dict[str, Piece] = {}
    for path in sorted(folder.glob("*_tag*.tosa")):
        made = folder / f"again_{path.stem}"
        _vela_program.run(path, target, made, "--output-format", "raw")
        (raw,) = made.glob("*_vela.npz")
        with np.load(raw, allow_pickle=False) as stream:
            parts = [stream["cmd_data"].tobytes(), stream["weight_data"].tobytes()]
        for name, each in lowered.items():
            if name not in found and all(part in each.processed_bytes for part in parts):
                estimate = _vela_program.read_estimate(made)
                found[name] = Piece(lowered=each, tosa=path.read_bytes(), estimate=estimate)
    if lost := lowered.keys() - found.keys():
        raise EdgekitError(f"Vela made another stream of {', '.join(sorted(lost))} the second time: please report it")
    return found


class _ReferenceModel(TorchFunctionMode):
    """Runs calls of the NPU in Arm's reference model, which defines every integer that TOSA gives."""

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__()
        self._tosa = {id(piece.lowered): piece.tosa for piece in pieces.values()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) != PARTITION_CALL:
            return func(*args, **(kwargs or {}))
        from executorch.backends.arm.ethosu import EthosUCompileSpec
        from executorch.backends.arm.test.runner_utils import run_tosa_graph

        lowered, *inputs = args
        spec = EthosUCompileSpec._from_list(lowered.compile_specs)
        return run_tosa_graph(
            self._tosa[id(lowered)], spec.tosa_spec, inputs, lowered.original_module.graph.output_node()
        )


def _refusal(name: str, error: BaseException) -> UnsupportedModel:
    """The backend's first cause, with the model's line where it tells one."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    own = [frame for frame in FRAME.findall(str(cause) + str(error)) if "site-packages" not in frame[0]]
    where = f" (at {Path(own[-1][0]).name}:{own[-1][1]})" if own else ""
    return UnsupportedModel(
        f"ExecuTorch's Arm backend cannot lower '{name}': {reason_of(cause)}{where}. Try --format tflite, the other "
        "road to this NPU"
    )
