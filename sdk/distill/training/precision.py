"""In which floats a teacher answers and a student learns. Weights are float32 in all of them."""

from __future__ import annotations

from typing import Literal

import torch

TrainingPrecision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: TrainingPrecision) -> torch.autocast:
    """Products and convolutions in the narrower type; sums, norms and losses stay in float32."""
    return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)
