"""What a distilled model's folder holds, and what stands in its `distilled.json`.

OUT/distilled.json      this module's `Distilled`
OUT/model.safetensors   every weight of the model with the student in it
OUT/card.json, OUT/card.html
OUT/config.json, ...    of a Hugging Face folder, so that OUT needs nothing else
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.distill.architecture.sizing import StudentRecord
from edgekit.distill.cutting.site import Site
from edgekit.distill.distill_options import DistillOptions
from edgekit.distill.refine import RefineRecord
from edgekit.distill.training.fit_options import FitRecord
from edgekit.errors import CorruptWeights, InvalidInput, ToolchainMissing
from edgekit.folder import read_value
from edgekit.source import DISTILLED
from edgekit.types import ModelSource, Value

WEIGHTS, CARD, PAGE = "model.safetensors", "card.json", "card.html"
SCHEMA_VERSION = 2
MAX_RECORD_BYTES = 16 << 20  # a sane one is under 1 MB


class Distilled(Value, frozen=True, kw_only=True):
    """A teacher, and which student took the place of which of its modules."""

    schema_version: int = SCHEMA_VERSION
    source: ModelSource  # of the teacher
    site: Site
    student: StudentRecord
    options: DistillOptions  # of the run: `distill(source, out, options)` repeats it
    task: str
    sha256: str  # over the whole model with the student, as `ModelSource` has it
    outside_sha256: str  # over all that is not the student, which is as it was
    fit: FitRecord
    refine: RefineRecord | None = None


def read_record(folder: Path) -> Distilled:
    """Raises `InvalidInput` that says what is wrong with it."""
    path = folder / DISTILLED
    if not path.is_file():
        raise InvalidInput(f"'{folder}' is no folder of edgekit distill: it has no {DISTILLED}")
    record = read_value(path, Distilled, MAX_RECORD_BYTES)
    if record.schema_version != SCHEMA_VERSION:
        raise InvalidInput(
            f"'{path}' has schema version {record.schema_version}, this edgekit reads {SCHEMA_VERSION}: distil again"
        )
    return record


def write_weights(module: nn.Module, path: Path) -> None:
    """Every weight, each with its own bytes also where the model holds one twice."""
    from safetensors.torch import save_file

    state: Mapping[str, Tensor] = module.state_dict()
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}, path)


def read_weights(module: nn.Module, path: Path) -> None:
    """Fill a module. Raises `InvalidInput` for no file, `CorruptWeights` for one that is not this module's."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ToolchainMissing("distilled models need safetensors: pip install 'edgekit[huggingface]'") from error
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise InvalidInput(f"'{path}' is missing: copy the whole folder again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptWeights(f"'{path}' cannot be read: {error}") from error
    wanted = module.state_dict()
    if other := sorted(state.keys() ^ wanted.keys()):
        raise CorruptWeights(f"'{path}' and the model differ in {len(other)} weights, among them '{other[0]}'")
    for name, tensor in wanted.items():
        found = state[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CorruptWeights(
                f"'{path}': '{name}' is {found.dtype}{list(found.shape)}, "
                f"and in the model {tensor.dtype}{list(tensor.shape)}"
            )
    with torch.no_grad():
        module.load_state_dict(state)
