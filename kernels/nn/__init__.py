"""Models that keep their weights losslessly coded on the device and use them there.

with without_weights():
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
load_lossless(model, folder, resident="small")  # what edgekit compress wrote
"""

from edgekit.kernels.nn.loading import load_lossless, without_weights
from edgekit.kernels.nn.modules import LosslessEmbedding, LosslessLinear, resident_bytes

__all__ = ["LosslessEmbedding", "LosslessLinear", "load_lossless", "resident_bytes", "without_weights"]
