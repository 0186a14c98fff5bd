"""Choose the passes, the format and the runtime for a model on a device, and say why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from torch.export import ExportedProgram

from edgekit import registry
from edgekit.bundle import PlanRecord
from edgekit.compiling import COMPILERS, DeviceCompiler
from edgekit.compression import PASSES, Pass
from edgekit.errors import InvalidInput, PlanInfeasible, unknown_name
from edgekit.graph import attention_ops, op_counts
from edgekit.passes.correct_bias import CorrectBias
from edgekit.passes.float16 import Float16
from edgekit.passes.fold_batch_norm import FoldBatchNorm
from edgekit.passes.int4_group import Int4Group
from edgekit.passes.int8_dynamic import Int8Dynamic
from edgekit.passes.int8_static import Int8Static
from edgekit.passes.int8_weight_only import Int8WeightOnly
from edgekit.passes.lossless import Lossless
from edgekit.passes.rewrite_for_npu import RewriteForNpu
from edgekit.profile import Compiler, ComputeUnit, DeviceProfile, RuntimeChoice
from edgekit.types import Precision, Value

EXPORTERS = "edgekit.exporters"
RECIPES: dict[Precision, tuple[Pass, ...]] = {
    "fp32": (),
    "lossless": (Lossless(),),
    "fp16": (Float16(),),
    "int8": (FoldBatchNorm(), Int8Static(), CorrectBias()),
    "int8-dynamic": (Int8Dynamic(), CorrectBias()),
    "int8-weight-only": (Int8WeightOnly(),),
    "w4a8": (Int4Group(),),
}
ALIASES: dict[str, Precision] = {
    "w8a8": "int8",
    "8da4w": "w4a8",
    "float32": "fp32",
    "float16": "fp16",
    "static_wi8_ai8": "int8",
}
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "convolution")


class _Target(Value, frozen=True, kw_only=True):
    """What a model is exported for: a format, the unit that runs it, and the vendor's compiler in between, if any."""

    format: str
    unit: ComputeUnit
    compiler: Compiler | None = None
    reasons: tuple[str, ...]


class Plan(Value, frozen=True, kw_only=True):
    """What will be done to a model: plain data, with a reason for each choice."""

    device: str
    format: str
    precision: Precision
    passes: tuple[Any, ...]  # of `Pass`; JSON carries each pass's name in its field "pass"
    options: dict[str, Any] = {}  # of the exporter, those that are not its defaults
    compiler: str | None = None  # of the device's vendor, that the artifact goes through
    reasons: tuple[str, ...] = ()

    def record(self) -> PlanRecord:
        """The plan as the manifest keeps it."""
        return PlanRecord.from_json(self.to_json())

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan written by `to_json`. Raises `InvalidInput` or `UnknownName`."""
        return plan_from_record(PlanRecord.from_json(text))


def plan_from_record(record: PlanRecord) -> Plan:
    """Give a stored plan its behaviour back."""
    return Plan(
        device=record.device,
        format=record.format,
        precision=record.precision,
        passes=tuple(_pass(options) for options in record.passes),
        options=record.options,
        compiler=record.compiler,
        reasons=record.reasons,
    )


def plan(
    program: ExportedProgram,
    device: DeviceProfile,
    *,
    precision: str = "auto",
    format: str = "auto",
    calibrated: bool = False,
    options: Sequence[str] = (),
) -> Plan:
    """Choose for a traced model. `calibrated` says whether calibration samples are at hand; `options` are the
    exporter's, as `NAME=VALUE` or `FORMAT.NAME=VALUE`.

    Raises `UnknownName` for a precision or format that does not exist, `InvalidInput` for a precision that the format
    does not have, `PlanInfeasible` when the device runs none.
    """
    target = _target(device, format)
    chosen, why = _precision(program, device, target, precision, calibrated)
    allowed = registry.load(EXPORTERS, target.format).PRECISIONS
    if chosen not in allowed:
        if precision != "auto":
            raise InvalidInput(f"{target.format} has no {chosen}: take --precision {', '.join(allowed)}")
        chosen, why = "fp32", f"precision fp32: {target.format} has no {chosen}"
    compiler = target.compiler.name if target.compiler and _compiles(target.compiler, chosen) else None
    return Plan(
        device=device.id,
        format=target.format,
        precision=chosen,
        passes=(*_rewrites(target, chosen), *_passes(chosen, calibrated)),
        options=(registry.load(COMPILERS, compiler).OPTIONS if compiler else {}) | _options(target.format, options),
        compiler=compiler,
        reasons=(*target.reasons, why),
    )


def _compiles(compiler: Compiler, precision: Precision) -> bool:
    """Whether edgekit runs this compiler, and it takes such a model."""
    return compiler.name in registry.names(COMPILERS) and precision in _driver(compiler).PRECISIONS


def _driver(compiler: Compiler) -> DeviceCompiler:
    found: DeviceCompiler = registry.load(COMPILERS, compiler.name)
    return found


def _rewrites(target: _Target, precision: Precision) -> tuple[Pass, ...]:
    """What comes first where the model goes through an NPU's compiler."""
    goes = target.compiler is not None and target.compiler.precision == precision
    return (RewriteForNpu(npu=target.unit.npu),) if goes and target.unit.npu else ()


def _passes(precision: Precision, calibrated: bool) -> tuple[Pass, ...]:
    """The recipe; without samples, without the passes that only refine what another has decided."""
    return tuple(step for step in RECIPES[precision] if calibrated or step.decides or not step.needs_samples)


def exporter_options(plan: Plan) -> Value:
    """The options of the plan's exporter. Raises `InvalidInput` that lists what there is."""
    kind: type[Value] = registry.load(EXPORTERS, plan.format).Options
    try:
        return msgspec.convert(plan.options, kind, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(f"{field}={getattr(kind(), field)}" for field in kind.__struct_fields__)
        raise InvalidInput(f"the {plan.format} exporter does not take this option: {error}; it has {known}") from error


def _options(format: str, given: Sequence[str]) -> dict[str, Any]:
    """The options by name; they must be this format's."""
    found: dict[str, Any] = {}
    for text in given:
        owner, option, value = split_option(text)
        if owner not in ("", format):
            raise InvalidInput(f"'{text}' is an option of {owner}, and this export is to {format}")
        found[option] = value
    return found


def split_option(text: str) -> tuple[str, str, str]:
    """Format (or ""), name and value of `NAME=VALUE` or `FORMAT.NAME=VALUE`."""
    name, equals, value = text.partition("=")
    owner, dot, option = name.rpartition(".")
    if not equals or not option:
        raise InvalidInput(f"'{text}' is no option: write NAME=VALUE or FORMAT.NAME=VALUE")
    if dot and owner not in registry.names(EXPORTERS):
        raise unknown_name("export format", owner, registry.names(EXPORTERS))
    return owner, option.replace("-", "_"), value


def require_fit(run_bytes: int, device: DeviceProfile, limit_mb: float | None) -> None:
    """Raise `PlanInfeasible` when weights and activations exceed the device's memory or the user's limit."""
    limits: list[tuple[float, str]] = [(limit_mb * 1e6, "--max-memory-mb")] if limit_mb is not None else []
    if device.memory_bytes is not None:
        limits.append((device.memory_bytes, f"the memory of {device.title}"))
    for limit, name in sorted(limits, key=lambda pair: pair[0]):
        if run_bytes > limit:
            raise PlanInfeasible(
                f"weights and activations need about {run_bytes / 1e6:.0f} MB, and {name} allows {limit / 1e6:.0f} MB: "
                "take a lower --precision, a smaller input, or a device with more memory"
            )


def _target(device: DeviceProfile, format: str) -> _Target:
    known = registry.names(EXPORTERS)
    if format != "auto":
        if format not in known:
            raise unknown_name("export format", format, known)
        return _asked_target(device, format)
    unserved: list[str] = []
    for choice in device.runtime:
        unit = device.unit_of(choice)
        if choice.format in known:
            why = f"format {choice.format}: {choice.name} serves {_place(device, choice)}"
            elsewhere = "" if unit.kind == "cpu" else "; edgekit itself runs and measures it on the CPU beside it"
            return _Target(format=choice.format, unit=unit, reasons=(*unserved, why + elsewhere))
        if choice.compiler is None or choice.compiler.name not in registry.names(COMPILERS):
            unserved.append(_not_served(device, choice))
        elif (reason := _driver(choice.compiler).missing()) and any(each.format in known for each in device.runtime):
            unserved.append(f"unserved {unit.name}: {reason}")
        else:
            made = f"{choice.compiler.name} makes {choice.format} of it for {_place(device, choice)}"
            why, reads = f"format {choice.compiler.reads}: {made}", choice.compiler.reads
            return _Target(format=reads, unit=unit, compiler=choice.compiler, reasons=(*unserved, why))
    if unserved:
        raise PlanInfeasible("; ".join(unserved))
    raise PlanInfeasible(f"{device.title} is served by no runtime, and there are exporters for {', '.join(known)}")


def _asked_target(device: DeviceProfile, format: str) -> _Target:
    for choice in device.runtime:
        if choice.format == format:
            return _Target(format=format, unit=device.unit_of(choice), reasons=(f"format {format}: asked for",))
    for choice in device.runtime:
        if choice.compiler is not None and choice.compiler.reads == format:
            why = f"format {format}: asked for; {choice.compiler.name} makes {choice.format} of it"
            return _Target(format=format, unit=device.unit_of(choice), compiler=choice.compiler, reasons=(why,))
    return _Target(format=format, unit=device.main_unit, reasons=(f"format {format}: asked for",))


def _place(device: DeviceProfile, choice: RuntimeChoice) -> str:
    return f"the {choice.unit} of {device.title}" if choice.unit else device.title


def _not_served(device: DeviceProfile, choice: RuntimeChoice) -> str:
    """Why a runtime of the device gets no model from here, and what to feed its vendor's compiler instead."""
    unit = device.unit_of(choice).name
    said = f"unserved {unit}: {choice.name} serves it, and edgekit does not write {choice.format} for {device.title}"
    if choice.compiler is None:
        return said
    asked = f"--format {choice.compiler.reads} --precision {choice.compiler.precision}"
    return f"{said}: export with {asked} and give that to {choice.compiler.name}"


def _precision(
    program: ExportedProgram, device: DeviceProfile, target: _Target, asked: str, calibrated: bool
) -> tuple[Precision, str]:
    if asked != "auto":
        name = known_precision(asked)
        return name, f"precision {name}: asked for"
    if target.compiler is not None:
        return _compiler_precision(target.compiler, calibrated)
    ops = op_counts(program)
    fast = target.unit.fast_dtypes
    convolutions = sum(ops[name] for name in CONVOLUTIONS)
    attention = attention_ops(program)
    if fast[:1] == ("float16",):
        return "fp16", f"precision fp16: the fastest arithmetic of {device.title}"
    if "int8" in fast and attention:
        return "int8-dynamic", f"precision int8-dynamic: {attention} attention ops, whose ranges no calibration can fix"
    if "int8" in fast and convolutions and calibrated:
        return "int8", f"precision int8: {convolutions} convolutions, int8 arithmetic on {device.title}, and samples"
    if "int8" in fast and convolutions:
        return "fp32", "precision fp32: int8 needs --calibration samples and there are none"
    return "fp32", f"precision fp32: nothing in this model gains from fewer bits on {device.title}"


def _compiler_precision(compiler: Compiler, calibrated: bool) -> tuple[Precision, str]:
    wanted = compiler.precision
    if calibrated or not any(step.decides and step.needs_samples for step in RECIPES[wanted]):
        return wanted, f"precision {wanted}: what {compiler.name} takes"
    raise PlanInfeasible(f"{compiler.name} takes {wanted} models, and {wanted} needs samples: give --calibration")


def known_precision(text: str) -> Precision:
    """The precision of this name, or of another word for it. Raises `UnknownName`."""
    for name in RECIPES:
        if name == ALIASES.get(text, text):
            return name
    raise unknown_name("precision", text, (*RECIPES, "auto"))


def _pass(options: dict[str, Any]) -> Pass:
    if "pass" not in options:
        raise InvalidInput(f"a plan's step needs its name in the field 'pass': {options}")
    step = registry.load(PASSES, str(options["pass"])).PASS
    try:
        found: Pass = msgspec.convert(options, step)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"pass '{options['pass']}' does not take these options: {error}") from error
    return found


def check_plan(plan: Plan) -> None:
    """Raise `InvalidInput` when a plan's passes do not make the numbers that its precision names."""
    made = [step.decides for step in plan.passes if step.decides]
    if (made or ["fp32"]) != [plan.precision]:
        raise InvalidInput(
            f"the plan says precision {plan.precision}, and its passes make {' and then '.join(made) or 'fp32'}: "
            "a plan has one pass that decides the numbers, and its precision names them"
        )
