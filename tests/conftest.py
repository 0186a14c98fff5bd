"""Shared fixtures: small models that export in a second, and the bundles made from them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

MODELS = Path(__file__).parent / "models.py"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy or torch start their pools
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: kernels run on the CPU


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads are several times slower than one on small machines."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return


@pytest.fixture(scope="session")
def small_conv_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified fp32 bundle of `tests/models.py:small_conv`."""
    from edgekit.drafting import ExportOptions
    from edgekit.pipeline import export

    out = tmp_path_factory.mktemp("small_conv") / "out"
    return export(f"{MODELS}:small_conv", "raspberrypi5", out, ExportOptions(precision="fp32", measure=False))


@pytest.fixture
def bundle_copy(small_conv_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of that bundle to damage."""
    return Path(shutil.copytree(small_conv_bundle.path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def thin_sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained toy Segment Anything with half its layers, which is traced and lowered the sooner."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from edgekit.distill.toy_sam import save_toy_sam
    from tests.toy_distillation import thin_toy_sam

    folder = tmp_path_factory.mktemp("sam") / "toy"
    folder.mkdir()
    save_toy_sam(thin_toy_sam(), folder)
    return folder


@pytest.fixture(scope="session")
def pixels_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 samples for `small_conv`, smooth enough to look like pictures."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("data") / "pixels.npz"
    coarse = rng.uniform(0, 1, (64, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    np.savez(path, pixels=np.clip(coarse + rng.normal(0, 0.05, coarse.shape), 0, 1).astype(np.float32))
    return path
