"""Language models small enough to trace in seconds, saved as folders by transformers itself, with a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.dataset import sentences

VOCABULARY = 300
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 256, "pad_token_id": 0,
         "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
WINDOW = {"sliding_window": 16}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {"rope_parameters": LLAMA3_ROPE},
    "Mistral": WINDOW,
    "Qwen2": WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "Gemma2": WINDOW
    | {"head_dim": 32, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0},
    "Gemma3": WINDOW
    | {"head_dim": 32, "query_pre_attn_scalar": 24, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "Phi3": {},
}  # fmt: skip
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"


def causal_model(architecture: str, **changes: Any) -> nn.Module:
    """A random model whose logits are far from flat, so that its likeliest token is no matter of rounding."""
    import transformers

    torch.manual_seed(0)
    kind = "Gemma3Text" if architecture == "Gemma3" else architecture
    config = getattr(transformers, f"{kind}Config")(
        **{**SMALL, **ARCHITECTURES[architecture], **changes}, attn_implementation="eager"
    )
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(3)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_folder(folder: Path, architecture: str = "Llama", **changes: Any) -> Path:
    """The model as `save_pretrained` leaves it, with tokenizer, chat template and a list of stop ids."""
    causal_model(architecture, **changes).save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE, trained on the shipped sentences: it can write any text, token by token inside characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences("sentences"), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
