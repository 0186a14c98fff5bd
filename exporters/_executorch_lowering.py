"""From a traced program to a .pte: partition for XNNPACK, plan memory, and remember why ops were left out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram

from edgekit.bundle import Fallback
from edgekit.errors import ToolchainMissing, UnsupportedModel, reason_of
from edgekit.exporters._executorch_delegation import fallbacks, origins
from edgekit.graph import op_nodes
from edgekit.quiet import quiet

CYCLE = "found dependency cycles"  # how exir ends a partition that would wait for itself
PARTITIONER_LOG = "executorch.backends.xnnpack.partition"
EXPANDING = ("matmul", "bmm", "expand", "scaled_dot_product_attention")
FUSING = ("AddConfig", "SubConfig", "MulConfig")


@dataclass(frozen=True, eq=False, kw_only=True)
class Lowered:
    """A program in ExecuTorch's own form."""

    executorch: Any  # ExecutorchProgramManager
    origins: tuple[Mapping[int, str], ...]  # of each partition: debug handle -> module path
    fallbacks: tuple[Fallback, ...]


def check_toolchain() -> None:
    """Raise `ToolchainMissing` with the line that installs what is missing."""
    try:
        with quiet():
            import executorch.exir  # noqa: F401
            import torchao  # noqa: F401
    except ImportError as error:
        raise ToolchainMissing(
            f"exporter 'executorch' needs {error.name}: pip install 'edgekit[executorch]'"
        ) from error


def lower(programs: dict[str, ExportedProgram], name: str, etrecord: bool) -> Lowered:
    """Lower and plan memory. Raises `UnsupportedModel` with the toolchain's reason."""
    try:
        try:
            return _lower(programs, etrecord, [])
        except AssertionError as error:
            if CYCLE not in str(error):
                raise
            return _lower(programs, etrecord, [_scaled_products()])
    except Exception as error:  # exir raises its own, torch's and Python's types
        raise UnsupportedModel(f"executorch cannot lower '{name}': {reason_of(error.__cause__ or error)}") from error


def _lower(programs: dict[str, ExportedProgram], etrecord: bool, before: list[Any]) -> Lowered:
    """Lower with the partitioners `before`, and then XNNPACK's for all that is left."""
    from executorch.backends.xnnpack.utils.configs import get_transform_passes
    from executorch.exir import to_edge_transform_and_lower

    with quiet(), partitioner_reasons() as reasons:
        partitioner = make_partitioner()
        edge = to_edge_transform_and_lower(
            programs,
            transform_passes=get_transform_passes() if any(map(_expands, programs.values())) else None,
            partitioner=[*before, partitioner],
            generate_etrecord=etrecord,
        )
        partitioned = edge.exported_program(next(iter(programs)))  # where ops run is told of the first
        left_out = fallbacks(partitioned, reasons, frozenset(partitioner.target_partitioner_configs))
        return Lowered(origins=origins(partitioned), fallbacks=left_out, executorch=edge.to_executorch())


def _expands(program: ExportedProgram) -> bool:
    """Whether copies may come up that change nothing and end a partition, as in every attention; looking costs time."""
    return any(str(node.target).split(".")[1] in EXPANDING for node in op_nodes(program.graph))


def make_partitioner() -> Any:
    """XNNPACK's partitioner, told that quantised sums and products take a hardtanh along like a relu.

    Its own settings know this of convolutions and linear layers only, although the pass that fuses treats all alike; a
    sum followed by a ReLU6 would be computed in float.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    partitioner = XnnpackPartitioner(configs=ALL_PARTITIONER_CONFIGS)
    for config in partitioner.target_partitioner_configs.values():
        if type(config).__name__ in FUSING:
            config.fused_acts = ["relu.default", "hardtanh.default"]
    return partitioner


def _scaled_products() -> Any:
    """Takes products with inputs scaled at every call one by one, each with its own scaling.

    Several in one partition that feed each other through a norm, as queries and keys of Qwen 3 and Gemma 3 do, make a
    partition that waits for itself.
    """
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True)


@contextlib.contextmanager
def partitioner_reasons() -> Iterator[dict[str, str]]:
    """Collect what the partitioner logs about nodes it leaves out; the last word on a node counts."""
    found: dict[str, str] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said: Any = record.msg
            if (node := getattr(said, "node", None)) is not None:
                found[node.name] = said.reason

    log, handler, disabled = logging.getLogger(PARTITIONER_LOG), Collector(), logging.root.manager.disable
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    logging.disable(logging.NOTSET)
    try:
        yield found
    finally:
        logging.disable(disabled)
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
