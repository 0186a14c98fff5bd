"""The verb: bring a model into the form that a device's NPU runs, and write it as a model of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit.compression import Progress, silent
from edgekit.dataset import Dataset, load_dataset
from edgekit.errors import InvalidInput
from edgekit.folder import building, check_free
from edgekit.model import Model
from edgekit.npu.adapting import AdaptationRecord, adapt, check
from edgekit.npu.auditing.audit import Audit, audit
from edgekit.npu.auditing.audit_page import audit_page
from edgekit.npu.folder import write_rewritten
from edgekit.npu.rewriting import RewriteRecord, rewrite
from edgekit.npu.rules import rules_of
from edgekit.profile import DeviceProfile, find_device
from edgekit.source import REWRITTEN, load

AUDIT, PAGE = "audit.json", "audit.html"
ROOM = 3  # times the weights, while the folder is made


@dataclass(frozen=True, kw_only=True)
class FixOptions:
    """What the user may say beside model, device and folder."""

    allow: tuple[str, ...] = ()  # adaptations by group or name; they change answers, so each is judged on `data`
    data: str | None = None  # samples in the grammar of `edgekit.dataset`; the model's own if left out
    force: bool = False


class Fixed(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to a model, and what the NPU makes of it before and after."""

    before: Audit
    after: Audit
    log: tuple[RewriteRecord, ...]
    adapted: tuple[AdaptationRecord, ...] = ()
    unasked: tuple[str, ...] = ()  # allowed adaptations that no rule of this NPU asks for


DEFAULTS = FixOptions()


def fix(
    model: Model | str,
    device: str | DeviceProfile,
    out: str | Path,
    options: FixOptions = DEFAULTS,
    *,
    progress: Progress = silent,
) -> Fixed:
    """Rewrite `model` for the NPU of `device` into the folder `out`, a model source like any other.

    Raises `InvalidInput` for a device without an NPU whose rules are known, `UnsupportedModel` for a model that cannot
    be traced, `OutputExists`; whatever it raises, nothing is left at `out`.
    """
    folder = Path(os.path.abspath(out))
    check_free(folder, options.force, REWRITTEN)
    profile = find_device(device) if isinstance(device, str) else device
    rules = rules_of(profile)
    if isinstance(model, str):
        progress(f"load {model}")
        model = load(model)
    if model.segmentation or model.generation:
        kind = "as two graphs" if model.segmentation else "token by token"
        raise InvalidInput(f"'{model.name}' runs {kind}, and a rewritten model is one graph: export it as it is")
    data = _samples(model, options.data) if options.allow else None
    if options.allow:
        check(options.allow, data)
    progress("audit the model")
    before = audit(model, profile, progress=progress)
    rewritten = rewrite(model, rules, progress=progress)
    made, log = rewritten.model, rewritten.log
    adapted, unasked = tuple[AdaptationRecord, ...](), tuple[str, ...]()
    if options.allow:
        changed = adapt(made, rules, allow=options.allow, data=data, progress=progress)
        adapted, unasked = changed.log, changed.unasked
        again = rewrite(changed.model, rules, progress=progress)  # a norm that became a BatchNorm folds away
        made, log = again.model, (*log, *(record for record in again.log if record.done))
    progress("audit the rewritten model")
    after = audit(made, profile, progress=progress)
    with building(folder, ROOM * model.weight_bytes, options.force) as partial:
        progress("write the rewritten model")
        write_rewritten(partial, model, made, device=profile.id, npu=rules.id, log=log, adapted=adapted)
        (partial / AUDIT).write_text(after.to_json(), encoding="utf-8")
        (partial / PAGE).write_text(audit_page(after, rules), encoding="utf-8")
    return Fixed(before=before, after=after, log=log, adapted=adapted, unasked=unasked)


def _samples(model: Model, data: str | None) -> Dataset | None:
    """What adaptations learn from and are judged on."""
    text: Sequence[str | None] = (data, model.calibration, model.evaluation)
    named = next((each for each in text if each), None)
    return load_dataset(named, model.inputs, model.preprocess, model.assets) if named else None
