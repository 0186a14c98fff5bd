"""The decoder step against transformers' own full forward pass, architecture by architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from language_models import ARCHITECTURES, VOCABULARY, causal_model, save_folder

from edgekit.decoder import decoder_step
from edgekit.decoding import Decoder
from edgekit.errors import UnsupportedModel
from edgekit.generation import Generation
from edgekit.graph import capture, specialise
from edgekit.model import Model, name_outputs
from edgekit.parity import sqnr_db
from edgekit.processing import Arrays
from edgekit.source import load
from edgekit.types import DynamicDim, TensorSpec

pytest.importorskip("transformers", reason="transformers is not installed")

CONTEXT = 64
CHUNKS = DynamicDim(name="tokens.1", minimum=1, maximum=16, sizes=(1, 4, 16))
STEPS = 30


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return torch.randint(3, VOCABULARY, (60,), generator=torch.Generator().manual_seed(1)).tolist()


def step_of(architecture: str, context: int = CONTEXT) -> tuple[torch.nn.Module, Decoder]:
    """The step, and a decoder that runs it in PyTorch."""
    model = causal_model(architecture)
    step, example, vocabulary = decoder_step(model, context, CHUNKS.maximum)
    inputs = [TensorSpec(name=n, dtype=str(t.dtype)[6:], shape=tuple(t.shape)) for n, t in example.items()]  # type: ignore[arg-type]

    def run(feeds: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = name_outputs(step(**{name: torch.from_numpy(array) for name, array in feeds.items()}))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    layers = (len(example) - 2) // 2
    return step, Decoder(run, Generation(context=context, layers=layers, vocabulary=vocabulary), inputs, [CHUNKS])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_and_steps_give_the_logits_of_one_full_pass(architecture: str, ids: list[int]) -> None:
    reference = causal_model(architecture).double()
    with torch.no_grad():
        full = reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    _, decoder = step_of(architecture)
    prompt = len(ids) - STEPS
    answers = [decoder.feed(ids[:prompt])] + [decoder.feed([token]) for token in ids[prompt:]]
    worst = min(sqnr_db(full[prompt - 1 + i], answer) for i, answer in enumerate(answers))
    assert worst > 100, architecture


def test_windows_and_caps_matter_in_these_models(ids: list[int]) -> None:
    for architecture, change in (("Gemma3", {"sliding_window": 256}), ("Gemma2", {"attn_logit_softcapping": None})):
        with torch.no_grad():
            rows = [m(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
                    for m in (causal_model(architecture), causal_model(architecture, **change))]  # fmt: skip
        assert sqnr_db(*rows) < 60, architecture


@pytest.mark.parametrize("parts", [(60,), (1, 59), (5, 16, 39), (17, 1, 1, 41), (33, 27)])
def test_however_a_text_is_cut_the_answer_is_the_same(parts: tuple[int, ...], ids: list[int]) -> None:
    _, whole = step_of("Qwen3")
    _, cut = step_of("Qwen3")
    expected, start = whole.feed(ids), 0
    for part in parts:
        logits = cut.feed(ids[start : start + part])
        start += part
    assert cut.position == len(ids)
    assert sqnr_db(expected, logits) > 100


def test_padding_and_stale_places_of_the_cache_are_never_seen(ids: list[int]) -> None:
    _, clean = step_of("Gemma3")
    _, dirty = step_of("Gemma3")
    for cache in dirty._caches.values():
        cache.fill(50.0)
    assert np.array_equal(clean.feed(ids[:21]), dirty.feed(ids[:21]))


def test_a_full_cache_says_so_and_its_last_place_is_used(ids: list[int]) -> None:
    _, decoder = step_of("Llama", context=32)
    decoder.feed(ids[:32])
    with pytest.raises(Exception, match="the cache holds 32 tokens, and 32 are in it"):
        decoder.feed([5])


def test_one_trace_serves_every_chunk_and_can_be_fixed_to_each(tmp_path: Path) -> None:
    model: Model = load(str(save_folder(tmp_path)), dynamic=["tokens.1=1,4,16"], context=CONTEXT)
    program = capture(model)
    for size in (1, 4, 16):
        fixed = specialise(program.module(check_guards=False), model.inputs, model.dynamic, size)
        assert not fixed.range_constraints
        feeds = {**model.example, "tokens": torch.arange(3, 3 + size)[None], "position": torch.tensor([7])}
        expected = model.module(**feeds)["logits"]
        assert torch.allclose(program.module()(**feeds)["logits"], expected, atol=1e-5)
        assert torch.allclose(fixed.module()(**feeds)["logits"], expected, atol=1e-5)
    assert {k for k, v in fixed.state_dict.items() if v is program.state_dict[k]} == set(fixed.state_dict)


def test_a_model_without_a_plain_cache_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="keeps no plain cache of keys and values"):
        decoder_step(torch.nn.Linear(2, 2), CONTEXT, 4)
