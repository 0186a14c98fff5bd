"""Sampling against the exact distribution, text that never breaks a character, and templates that stay in their box."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, InvalidInput
from edgekit.generation import (
    CHAT_TEMPLATE,
    HALF,
    TOKENIZER,
    Generation,
    Sampling,
    TextStream,
    chat_prompt,
    checked_ids,
    choose,
    probabilities,
    tokenizer_of,
)

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05])).astype(np.float32)
GENERATION = Generation(context=8, layers=1, vocabulary=10, special_tokens={"bos_token": "<s>"})
HELLO = [{"role": "user", "content": "hello"}]


def rendered(template: str) -> str:
    return chat_prompt(HELLO, GENERATION, {CHAT_TEMPLATE: template.encode()})


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, 5), (0.96, 5), (0.94, 4), (0.86, 4), (0.84, 3), (0.71, 3), (0.69, 2), (0.51, 2), (0.49, 1), (1e-9, 1)],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, kept: int) -> None:
    exact = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    exact[kept:] = 0
    found = probabilities(LOGITS, Sampling(temperature=1.0, top_p=top_p))
    assert np.allclose(found, exact / exact.sum(), atol=1e-7)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature: float) -> None:
    weights = [math.exp(float(x) / temperature) for x in LOGITS]
    found = probabilities(LOGITS, Sampling(temperature=temperature))
    assert np.allclose(found, np.array(weights) / sum(weights), rtol=1e-12)


def test_draws_follow_the_distribution() -> None:
    sampling, draws = Sampling(temperature=1.0, top_p=0.9), 20_000
    rng = np.random.default_rng(0)
    counts = np.bincount([choose(LOGITS, sampling, rng) for _ in range(draws)], minlength=5)
    expected = probabilities(LOGITS, sampling) * draws
    inside = expected > 0
    chi_squared = float(((counts - expected)[inside] ** 2 / expected[inside]).sum())
    assert counts[~inside].sum() == 0
    assert chi_squared < 16.3  # 3 degrees of freedom, p = 0.001


def test_temperature_zero_takes_the_likeliest_and_seeds_repeat() -> None:
    def drawn(sampling: Sampling) -> list[int]:
        rng = np.random.default_rng(sampling.seed)
        return [choose(LOGITS, sampling, rng) for _ in range(40)]

    assert set(drawn(Sampling())) == {0}
    assert probabilities(LOGITS, Sampling()).tolist() == [1, 0, 0, 0, 0]
    warm = Sampling(temperature=1.0, seed=7)
    assert drawn(warm) == drawn(warm) != drawn(Sampling(temperature=1.0, seed=8))


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf},
                                   {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": math.nan}, {"seed": -1}])  # fmt: skip
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="cannot be sampled with"):
        Sampling(**wrong)  # type: ignore[arg-type]


def utf8(ids: list[int]) -> str:
    """A tokenizer of single bytes."""
    return bytes(ids).decode(errors="replace")


@given(st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_pieces_join_to_the_text_and_none_holds_half_a_character(text: str) -> None:
    stream = TextStream(utf8)
    pieces = [stream.push(byte) for byte in text.encode()]
    if HALF not in text:
        assert not any(HALF in piece for piece in pieces)
        assert stream.flush() == ""
        assert [len(p) for p in pieces if p] == [1] * len(text)  # each character as soon as it is whole
    assert "".join(pieces) + stream.flush() == text


@given(st.lists(st.integers(0, 255), max_size=30))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_text_are_shown_at_the_latest_at_the_end(ids: list[int]) -> None:
    stream = TextStream(utf8)
    shown = "".join(stream.push(byte) for byte in ids) + stream.flush()
    assert shown == utf8(ids)


def test_words_whose_form_depends_on_the_one_before_are_not_run_together() -> None:
    words = ["▁two", "▁words", "'", "s"]

    def decode(ids: list[int]) -> str:  # as SentencePiece does: the space before the first word goes
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    stream = TextStream(decode)
    assert [stream.push(i) for i in range(4)] == ["two", " words", "'", "s"]


def test_a_chat_template_gets_messages_and_special_tokens() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}{{ {'a': 'ü'} | tojson }}"
    )
    assert rendered(template) == '<s>user: hello>{"a": "ü"}'


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ self.__init__.__globals__['os'].system('true') }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ lipsum.__globals__['os'].getcwd() }}",
    ],
)
def test_a_template_that_reaches_out_or_fails_is_one_sentence(template: str) -> None:
    with pytest.raises(InvalidInput, match="the bundle's chat template refuses these messages: "):
        rendered(template)


def test_bundles_without_template_or_tokenizer_say_so() -> None:
    with pytest.raises(InvalidInput, match="carries no chat template: give the prompt without --chat"):
        chat_prompt(HELLO, GENERATION, {})
    with pytest.raises(InvalidInput, match=r"carries no tokenizer: put tokenizer\.json into the model's folder"):
        tokenizer_of({})
    with pytest.raises(EdgekitError, match=r"'tokenizer\.json' is not a readable tokenizer"):
        tokenizer_of({TOKENIZER: b'{"model": 1}'})


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([], "the prompt is empty"),
        ([1, 10], "token 10 of the prompt is outside the model's 10 tokens"),
        ([-1], "token -1 of the prompt is outside"),
        ([1] * 9, "has 9 tokens, and this bundle's cache holds 8: shorten it, or export again with --context 128"),
    ],
)
def test_prompts_that_the_model_cannot_take_are_refused(ids: list[int], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        checked_ids(ids, GENERATION)


def test_a_prompt_may_fill_the_cache() -> None:
    assert checked_ids(range(8), GENERATION) == list(range(8))
    assert all(a + 1 == b for a, b in pairwise(checked_ids(range(8), GENERATION)))
