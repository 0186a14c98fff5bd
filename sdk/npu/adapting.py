"""Changes of a model that an NPU needs and that are not exact: made where allowed, repaired, judged, taken back.

One block after another is changed in a copy of the model, taught with the project's distillation to answer as before,
and kept where its outputs on samples that it has not learnt from come within a bar. Source: BRECQ (arXiv 2102.05426)
for the block as the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgekit.compression import Progress, silent
from edgekit.dataset import Dataset
from edgekit.distill.training.fit_options import FitOptions
from edgekit.errors import InvalidInput
from edgekit.graph import capture, place_of
from edgekit.layered import LayeredModule, copied, layered
from edgekit.model import Model, name_outputs
from edgekit.npu.adaptation import Adaptation, Site, allowed, asked_for, load
from edgekit.npu.blocks import Block, owned, sources, values
from edgekit.npu.repair import REPAIR, blocks_db, repair, worst_db
from edgekit.npu.rules import NpuRules
from edgekit.types import Value

BAR_DB = 30.0  # at a block's output
MOST_DROP = 0.005  # of the score, where one is given
ENOUGH_DB = 60.0  # the teacher's answers are kept to a thousandth, so nothing is learnt from them above
LEAST_SAMPLES = 4  # of which one judges


class AdaptationRecord(Value, frozen=True, kw_only=True):
    """What became of one place. Ratios are those of the worst output, over samples that nothing was learnt from."""

    name: str
    title: str
    place: str  # "encoder.layers.0.act (model.py:41)"
    block: str
    kept: bool
    reason: str  # why it was kept or not
    before_db: float | None = None  # SQNR of the block's output against what it gave before the change; no repair yet
    after_db: float | None = None  # after repair; equal where training did not help, None where none was needed
    model_db: float | None = None  # of the model's outputs against the given model's, with all that was kept before


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model after its adaptations, and what each did. Where none was kept, the model is the one that was given."""

    model: Model
    log: tuple[AdaptationRecord, ...]
    unasked: tuple[str, ...] = ()  # allowed adaptations that no rule of this NPU asks for


@dataclass(frozen=True, kw_only=True)
class Bar:
    """When a change is good enough: SQNR at the block's output, or a score of the whole model, higher being better."""

    least_db: float = BAR_DB
    score: Callable[[nn.Module], float] | None = None
    most_drop: float = MOST_DROP


def adapt(
    model: Model,
    rules: NpuRules,
    *,
    allow: Sequence[str],
    data: Dataset | None,
    bar_db: float = BAR_DB,
    score: Callable[[nn.Module], float] | None = None,
    most_drop: float = MOST_DROP,
    fit: FitOptions = REPAIR,
    progress: Progress = silent,
) -> Adapted:
    """Apply the adaptations of the allowed groups that the NPU asks for, and those allowed by name in any case.

    Of `data`, three samples of four are learnt from and every fourth judges. A block below `bar_db` is kept only where
    `score(module)` falls by no more than `most_drop`. Raises `UnknownName` for a word that allows nothing,
    `InvalidInput` where there are too few samples, `UnsupportedModel` for a model that cannot be traced.
    """
    names = allowed(allow)
    asked = [name for name in names if name in allow or asked_for(rules, name)]
    learn, held = _samples(data)
    trial = _Trial(model, learn, held, Bar(least_db=bar_db, score=score, most_drop=most_drop), fit, progress)
    for name in asked:
        trial.run(name, rules)
    kept = any(record.kept for record in trial.log)
    return Adapted(
        model=replace(model, module=trial.current) if kept else model,
        log=tuple(trial.log),
        unasked=tuple(name for name in names if name not in asked),
    )


def check(allow: Sequence[str], data: Dataset | None) -> None:
    """Raise what `adapt` raises for words and samples that will not do, before any work."""
    allowed(allow)
    _samples(data)


def _samples(data: Dataset | None) -> tuple[Dataset, Dataset]:
    """Those to learn from and those that judge."""
    count = len(data.samples) if data else 0
    if data is None or count < LEAST_SAMPLES:
        raise InvalidInput(
            f"adaptations are repaired and judged on real inputs, {LEAST_SAMPLES} or more, and there are {count}: add "
            "--data with a folder of images, a file.npz with one array per input, or builtin:NAME"
        )
    return data.split()


class _Trial:
    """The model so far, and what was tried on it."""

    def __init__(
        self, model: Model, learn: Dataset, held: Dataset, bar: Bar, fit: FitOptions, progress: Progress
    ) -> None:
        self.current = layered(capture(model))
        self.log: list[AdaptationRecord] = []
        self._learn, self._held = learn.samples, held.samples
        self._bar, self._fit, self._progress = bar, fit, progress
        self._right = self._outputs(self.current)
        self._score = bar.score(self.current) if bar.score else 0.0

    def run(self, name: str, rules: NpuRules) -> None:
        """Try an adaptation at all its sites, one after another."""
        adaptation = load(name)
        for site in list(adaptation.sites(self.current, rules)):
            place = place_of(site.node)
            self._progress(f"adaptation {name} at {place}")
            outcome = _Outcome(kept=False, reason=site.refused) if site.refused else self._try(adaptation, site)
            self.log.append(
                AdaptationRecord(name=name, title=adaptation.TITLE, place=place, block=site.block, **vars(outcome))
            )

    def _try(self, adaptation: Adaptation, site: Site) -> _Outcome:
        """Change a copy, repair it and judge it; where it is good enough, it is the model from now on."""
        tried = copied(self.current)
        node = next((each for each in tried.graph.nodes if each.name == site.node.name), None)
        if node is None:
            return _Outcome(kept=False, reason="what was kept at another place took it along")
        site = replace(site, node=node)
        feeds = sources(self.current, site.block)
        learn, held = (values(self.current, feeds, samples) for samples in (self._learn, self._held))
        adaptation.apply(tried, site, lambda node: values(tried, [node], self._learn)[node.name])
        tried.tidy()
        teacher, student = Block(self.current, site.block), Block(tried, site.block)
        found = before = blocks_db(teacher, student, held)
        after = failure = None
        if before < ENOUGH_DB and (weights := owned(tried, site.block)):
            try:
                found = after = repair(teacher, student, weights, learn, held, self._fit, self._progress)
            except InvalidInput as error:  # a loss that is not finite
                failure = str(error)
        model_db = worst_db(self._outputs(tried), self._right)
        kept, reason = self._judged(found, tried)
        if kept:
            self.current = tried
        reason += f"; the repair failed: {failure}" if failure else ""
        return _Outcome(kept=kept, reason=reason, before_db=before, after_db=after, model_db=model_db)

    def _judged(self, found_db: float, tried: LayeredModule) -> tuple[bool, str]:
        bar = self._bar
        found = f"{found_db:.1f} dB at its block's output"
        if found_db >= bar.least_db:
            return True, f"{found}, {bar.least_db:g} or more are asked for"
        if bar.score is None:
            return False, f"{found}, below {bar.least_db:g}"
        drop = self._score - bar.score(tried)
        kept = drop <= bar.most_drop
        return kept, f"{found}; the score falls by {drop:.4g}, {bar.most_drop:g} {'is' if kept else 'would be'} allowed"

    @torch.no_grad()
    def _outputs(self, module: nn.Module) -> list[dict[str, Tensor]]:
        feeds = ({name: torch.from_numpy(array) for name, array in sample.items()} for sample in self._held)
        return [name_outputs(module(**each)) for each in feeds]


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What `AdaptationRecord` says of a trial."""

    kept: bool
    reason: str
    before_db: float | None = None
    after_db: float | None = None
    model_db: float | None = None
