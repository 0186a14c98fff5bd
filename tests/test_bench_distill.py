"""The bench of distillation: its arithmetic, and the whole way at the smallest size."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from toy_distillation import SAM_SITE

from edgekit.bench.distill import BARS, DistillBench, Effort, SeedResult, figures, run, table
from edgekit.distill.card import MEAN_EMBEDDING, STUDENT, UNTRAINED, Figures, card_of
from edgekit.errors import InvalidInput
from edgekit.host import host_state
from edgekit.intervals import Interval

SMALLEST = Effort(teacher_steps=2, scenes=12, judged_share=0.4, steps=2, refine_steps=1)
STORED = Path(__file__).with_name("distill_benchmarks.json")


def result(seed: int, agreement: float) -> SeedResult:
    own, floor = (
        Figures(
            r2=0.96, cosine=0.98, worst_channel_r2=0.9, agreement={"points": a, "boxes": a}, quality={"points": 0.6}
        )
        for a in (agreement, 0.5)
    )
    card = card_of(
        model="toy", site=SAM_SITE, student_params=43_168, task="segment_anything", metric="mask IoU", images=9,
        images_with_truth=9, figures={STUDENT: own, UNTRAINED: floor, MEAN_EMBEDDING: floor},
        teacher_quality={"points": 0.625}, refinement=None,
    )  # fmt: skip
    ratio = Interval(low=0.4, high=0.6)
    return SeedResult(seed=seed, card=card, time_ratio=0.5, time_ratio_ci=ratio, teacher_s=1.0, distill_s=2.0)


def test_figures_are_means_over_seeds_beside_their_bars() -> None:
    found = figures([result(0, 0.7), result(1, 0.8)])
    assert [each.name for each in found] == list(BARS)
    assert [round(each.mean, 4) for each in found] == [0.96, 0.75, 0.25, 0.96, 6.0, 2.0]
    assert (found[1].least, found[1].most) == (0.7, 0.8)
    assert [each.met for each in found] == [True, False, True, True, True, True]


def test_the_table_says_what_was_missed() -> None:
    seeds = (result(0, 0.7),)
    bench = DistillBench(host=host_state(), versions={}, effort=SMALLEST, figures=figures(seeds), seeds=seeds)
    _, rows = table(bench)
    assert [row[-1] for row in rows] == ["met", "MISSED", "MISSED", "met", "met", "met"]
    assert DistillBench.from_json(bench.to_json()) == bench


def test_no_seeds_are_refused() -> None:
    with pytest.raises(InvalidInput, match="--seeds must be 1 or more, not 0"):
        run(0)
    with pytest.raises(InvalidInput, match="--jobs must be 1 or more, not -1"):
        run(1, jobs=-1)


@pytest.mark.slow
def test_the_whole_way_at_the_smallest_size(tmp_path: Path) -> None:
    found = run(1, SMALLEST, cache=tmp_path)
    card = found.seeds[0].card
    assert card.images_with_truth == card.images > 0
    assert set(card.controls) == {"untrained student", "mean embedding", "stage 1 alone", "more steps of stage 1"}
    assert card.student_params <= card.teacher_params / 6
    assert found.figures == figures(found.seeds)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_the_stored_figures_are_of_the_default_effort_and_of_their_seeds() -> None:
    found = DistillBench.from_json(STORED.read_bytes())
    assert [each.seed for each in found.seeds] == list(range(len(found.seeds)))
    assert found.effort == Effort()
    assert found.figures == figures(found.seeds)
