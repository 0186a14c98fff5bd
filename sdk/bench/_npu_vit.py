"""A small ViT of transformers on several NPUs: the share of its MACs that runs there, as it is and after rewriting."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgekit.bench._npu_figure import Figure
from edgekit.compression import Progress
from edgekit.errors import ToolchainMissing
from edgekit.model import Model
from edgekit.npu.auditing.audit import Audit, audit
from edgekit.npu.rewriting import rewrite
from edgekit.npu.rules import rules_of
from edgekit.profile import find_device
from edgekit.source import load

DEVICES = ("ethos-u85-256", "qcom-htp-v68", "qcom-htp-v75", "apple-ane", "rk3588-npu", "coral-edgetpu", "hailo-8l")
BAR = 95.0
LESS = {"coral-edgetpu": 85.0}  # which has no product of two computed tensors: the rest is attention's


def figures(progress: Progress) -> Iterator[Figure]:
    """The share on each NPU after its exact rewrites, and before them in words. Raises `ToolchainMissing`."""
    model = small_vit()
    for name in DEVICES:
        device = find_device(name)
        progress(f"audit a small ViT for {name}")
        before = audit(model, device)
        after = audit(rewrite(model, rules_of(device)).model, device)
        yield Figure(
            name=f"small ViT on {name}: MACs on the NPU after exact rewrites",
            value=100 * after.coverage_macs,
            unit="%",
            bar=LESS.get(name, BAR),
            how=f"{_said(before)} before; {_said(after)} after; {after.basis}",
        )


def small_vit() -> Model:
    """Four layers of 64 channels on images of 64 pixels, random weights."""
    try:
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError as error:
        raise ToolchainMissing("a ViT needs transformers: pip install 'edgekit[huggingface]'") from error
    config = ViTConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
                       image_size=64, patch_size=8, num_labels=10)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ViTForImageClassification(config).eval()
    return load(module, {"pixel_values": torch.zeros(1, 3, 64, 64)})


def _said(found: Audit) -> str:
    runs = sum(op.verdict == "runs" for op in found.placements)
    return f"{runs} of {len(found.placements)} ops and {found.coverage_macs:.1%} of MACs"
