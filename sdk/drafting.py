"""Decide everything about an export before anything is written: what `plan` and `export --dry-run` show."""

from __future__ import annotations

from dataclasses import dataclass

from torch.export import ExportedProgram

from edgekit.compression import CompressedModel, Progress, compress, silent
from edgekit.cost.forecast import Forecast, forecast
from edgekit.dataset import FEW_SAMPLES, Dataset, load_dataset
from edgekit.errors import InvalidInput
from edgekit.golden import decoder_samples
from edgekit.graph import capture
from edgekit.host import available_memory_bytes
from edgekit.model import Model
from edgekit.planning import Plan, check_plan, exporter_options, plan, require_fit
from edgekit.profile import DeviceProfile, find_device
from edgekit.verification import fit


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the user may say about an export besides model, device and folder."""

    format: str = "auto"
    precision: str = "auto"
    calibration: str | None = None  # data sets in the grammar of `edgekit.dataset`
    samples: str | None = None  # to verify with; default: the model's own, or a part of the calibration set
    plan: Plan | None = None  # instead of one chosen here
    cosine_min: float | None = None
    sqnr_db_min: float | None = None
    max_memory_mb: float | None = None
    max_drop: float | None = None  # percentage points of top-1
    min_delegated: float | None = None  # percent of the ops on the unit that is meant to run them
    options: tuple[str, ...] = ()  # of the exporter: NAME=VALUE, or FORMAT.NAME=VALUE
    keep_intermediates: bool = False
    force: bool = False
    measure: bool = True


DEFAULTS = ExportOptions()


@dataclass(frozen=True, eq=False)
class Draft:
    """A model with everything decided and nothing written: what `--dry-run` shows."""

    compressed: CompressedModel
    program: ExportedProgram
    plan: Plan
    device: DeviceProfile
    forecast: Forecast
    evaluation: Dataset | None
    warnings: tuple[str, ...] = ()


def draft(
    model: Model, device: str | DeviceProfile, options: ExportOptions = DEFAULTS, progress: Progress = silent
) -> Draft:
    """Trace, plan, compress and forecast. Raises `PlanInfeasible` when it cannot fit the device or the budgets."""
    profile = find_device(device) if isinstance(device, str) else device
    calibration, evaluation, warnings = _datasets(model, options)
    progress("trace the model")
    program = capture(model)
    chosen = options.plan or plan(
        program,
        profile,
        precision=options.precision,
        format=options.format,
        calibrated=calibration is not None,
        options=options.options,
    )
    if options.plan and (options.precision, options.format, options.options) != ("auto", "auto", ()):
        raise InvalidInput(
            "a plan says precision, format and options already: give the plan, or --precision, --format and --option"
        )
    exporter_options(chosen)
    if options.min_delegated is not None and not 0 <= options.min_delegated <= 100:
        raise InvalidInput(f"--min-delegated is a percentage between 0 and 100, not {options.min_delegated:g}")
    if options.max_drop is not None and model.logits is None:
        raise InvalidInput("--max-drop counts top-1 answers, and this model has no class labels: use --min-sqnr-db")
    check_plan(chosen)
    if chosen.device != profile.id:
        warnings += (f"the plan was made for {chosen.device}, this export is for {profile.id}",)
    needed = calibration if chosen.compiler or any(step.needs_samples for step in chosen.passes) else None
    if needed and len(needed.samples) < FEW_SAMPLES:
        warnings += (
            f"only {len(needed.samples)} calibration samples: ranges may be too narrow, give {FEW_SAMPLES} or more",
        )
    compressed = compress(model, chosen.passes, profile, program, calibration=needed, progress=progress)
    if compressed.model is not model:
        progress("trace the compressed model")
        program = capture(compressed.model)
    predicted = forecast(compressed, program, chosen, profile, model.weight_bytes)
    require_fit(predicted.memory.run_bytes, profile, options.max_memory_mb)
    free, needed_bytes = available_memory_bytes(), predicted.memory.export_peak_bytes
    if free is not None and needed_bytes > free:
        warnings += (
            f"exporting may take {needed_bytes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free: close other programs if it is killed",
        )
    return Draft(
        compressed, program, chosen, profile, predicted, evaluation, (*model.warnings, *warnings, *compressed.warnings)
    )


def _datasets(model: Model, options: ExportOptions) -> tuple[Dataset | None, Dataset | None, tuple[str, ...]]:
    """Calibration and evaluation samples; they share none unless the user names one set for both."""

    def read(text: str) -> Dataset:
        found = load_dataset(text, model.inputs, model.preprocess, model.assets)
        fitted = tuple(fit(sample, model.inputs, model.dynamic) for sample in found.samples)
        return Dataset(found.origin, fitted, found.warnings)

    calibration = read(text) if (text := options.calibration or model.calibration) else None
    evaluation: Dataset | None
    if options.samples:
        evaluation = read(options.samples)
    elif options.calibration and calibration and len(calibration.samples) >= 8:
        calibration, evaluation = calibration.split()
    elif model.generation:
        evaluation = decoder_samples(model, model.generation)
    else:
        evaluation = read(model.evaluation) if model.evaluation else None
    found = [dataset for dataset in (calibration, evaluation) if dataset]
    return calibration, evaluation, tuple(dict.fromkeys(w for dataset in found for w in dataset.warnings))
