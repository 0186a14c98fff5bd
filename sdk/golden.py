"""What PyTorch makes of a text, for a language model's bundle to be held against: steps, and a golden run."""

from __future__ import annotations

from typing import Any

import torch

from edgekit.dataset import Dataset, sentences
from edgekit.decoder import ATTENTION
from edgekit.decoding import Decoder
from edgekit.generation import TOKENIZER, Generation, GoldenRun, tokenizer_of
from edgekit.model import Model
from edgekit.processing import Arrays, Assets

GOLDEN_PROMPT = "The capital of France is"
GOLDEN_TOKENS = 32
MORE_STEPS = 4  # single tokens to verify with, after a chunk and one token


def decoder_samples(model: Model, generation: Generation) -> Dataset:
    """Steps of PyTorch's own on a shipped text: single tokens, and a whole chunk before them."""
    seen: list[Arrays] = []

    def run(feeds: Arrays) -> Arrays:
        seen.append({name: array.copy() for name, array in feeds.items()})
        return model(feeds)

    decoder = Decoder(run, generation, model.inputs, model.dynamic)
    chunk = next(dim.maximum for dim in model.dynamic if dim.sizes)
    text = " ".join(sentences("sentences-heldout"))
    ids = _encode(text, generation, model.assets) * (2 * chunk)
    decoder.feed(ids[: chunk + 1])
    for token in ids[chunk + 1 : chunk + 1 + MORE_STEPS]:
        decoder.feed([token])
    return Dataset("builtin:sentences-heldout, step by step", tuple(reversed(seen)))  # the first is a single token


def golden_run(model: Model, generation: Generation) -> GoldenRun:
    """The likeliest tokens after a fixed prompt, by transformers' own attention and cache."""
    causal: Any = model.module.model
    prompt = _encode(GOLDEN_PROMPT, generation, model.assets)[:GOLDEN_TOKENS]
    chosen: list[tuple[int, float]] = []
    causal.set_attn_implementation("eager")
    try:
        feed, cache = prompt, None
        with torch.no_grad():
            for _ in range(GOLDEN_TOKENS):
                result = causal(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True)
                chances, cache = result.logits[0, -1].double().softmax(-1), result.past_key_values
                likeliest = int(chances.argmax())
                chosen.append((likeliest, float(chances[likeliest])))
                feed = [likeliest]
    finally:
        causal.set_attn_implementation(ATTENTION)
    ids, probabilities = zip(*chosen, strict=True)
    text = GOLDEN_PROMPT if TOKENIZER in model.assets else ""
    return GoldenRun(prompt=text, prompt_ids=tuple(prompt), ids=ids, probabilities=probabilities)


def _encode(text: str, generation: Generation, assets: Assets) -> list[int]:
    """The ids of a text; any eight where the model has no tokenizer."""
    ids = tokenizer_of(assets).encode(text).ids if TOKENIZER in assets else range(1, 9)
    return [token for token in ids if token < generation.vocabulary] or [0]
