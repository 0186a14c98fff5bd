"""The bench of distillation on a GPU: the stored figures of an H200, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bench.distill_gpu import GpuBench, cells, run
from edgekit.errors import InvalidInput

STORED = Path(__file__).with_name("distill_gpu.json")


def test_the_stored_figures_are_of_a_real_size_and_the_student_learnt() -> None:
    found = GpuBench.from_json(STORED.read_bytes())
    assert "H200" in found.device
    assert found.card.teacher_params > 30e6
    assert found.card.student_params <= found.card.teacher_params / 6
    assert found.card.r2 > 0.9
    speed = {(probe.images, probe.store): probe.images_per_s for probe in found.probes}
    assert speed["files", "files"] > speed["files", "stream"]  # what a cache is for
    assert speed["memory", "ram"] > speed["memory", "stream"]
    assert all(filling.cost.images == found.images for filling in found.fillings)
    lines = dict(cells(found))
    assert f"R2 {found.card.r2:.4f}" in lines["embeddings"]
    assert "GPU busy" in lines["images in files, embeddings stream"]


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InvalidInput, match="torch sees no CUDA device: this bench is of training on one"):
        run(tmp_path)
    assert not list(tmp_path.iterdir())
