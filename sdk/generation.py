"""What a bundle with a language model knows about making text: stop ids, chat template, a golden run; and its parts.

Sampling, streaming and the chat template live here; `edgekit.decoding` runs them around a session.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import InvalidInput, ToolchainMissing
from edgekit.processing import Array, Assets, asset_text, open_tokenizer, softmax
from edgekit.types import Value

TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"
HALF = "\ufffd"  # what a tokenizer decodes an unfinished character to
PROMPT_TOKENS = 65  # of the prompt that profiling reads: two chunks of 32, and the last token alone
LEAST_CONTEXT = 4  # a prompt, and answers of two tokens or more, which have a time between them
Message = Mapping[str, str]  # role and content, as chat templates take them


class GoldenRun(Value, frozen=True, kw_only=True):
    """PyTorch's likeliest tokens after a prompt, by transformers' own code."""

    prompt: str  # "" where the bundle has no tokenizer
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]  # PyTorch's, of each id

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.ids or len(self.ids) != len(self.probabilities):
            raise ValueError("a golden run needs a prompt, tokens, and a probability for each of them")


class Generation(Value, frozen=True, kw_only=True):
    """How to make text with a decoder step; `edgekit.decoder` says what its tensors hold."""

    context: int  # places in the KV cache: prompt and answer together
    layers: int
    vocabulary: int
    stop_ids: tuple[int, ...] = ()
    special_tokens: dict[str, str] = {}  # for the chat template: bos_token, eos_token
    golden: GoldenRun | None = None

    def __post_init__(self) -> None:
        if self.context < LEAST_CONTEXT or self.layers < 1 or self.vocabulary < 2:
            raise ValueError(
                f"generation needs a context of {LEAST_CONTEXT} tokens, a layer and a vocabulary of 2 at least, not "
                f"{self.context}, {self.layers} and {self.vocabulary}"
            )
        golden = (*self.golden.prompt_ids, *self.golden.ids) if self.golden else ()
        if outside := [token for token in (*self.stop_ids, *golden) if not 0 <= token < self.vocabulary]:
            raise ValueError(f"token {outside[0]} of generation is outside its vocabulary of {self.vocabulary}")
        if len(golden) > self.context:
            raise ValueError(f"the golden run has {len(golden)} tokens, and the context holds {self.context}")


def timing_prompt(generation: Generation) -> list[int]:
    """The prompt that profiling reads: the golden run's, repeated until it fills whole chunks."""
    ids = list(generation.golden.prompt_ids) if generation.golden else [0]
    return (ids * PROMPT_TOKENS)[: min(PROMPT_TOKENS, generation.context // 2)]


class Sampling(Value, frozen=True, kw_only=True):
    """How the next token is chosen. Temperature 0 takes the likeliest; the same seed gives the same text."""

    temperature: float = 0.0
    top_p: float = 1.0  # draw among the likeliest tokens that together reach this probability
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature <= 100 and 0 < self.top_p <= 1 and self.seed >= 0):
            raise InvalidInput(
                f"temperature {self.temperature}, top-p {self.top_p} and seed {self.seed} cannot be sampled with: "
                "take a temperature from 0 to 100, a top-p above 0 and up to 1, and a seed from 0"
            )


GREEDY = Sampling()


def probabilities(logits: Array, sampling: Sampling) -> Array:
    """The chance of each token, float64 `[V]`: softmax at the temperature, cut to the nucleus of `top_p`.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    if sampling.temperature == 0:
        return np.asarray(np.arange(len(logits)) == logits.argmax(), dtype=np.float64)
    chances = softmax(logits.astype(np.float64) / sampling.temperature)
    order = np.argsort(-chances, kind="stable")
    before = np.cumsum(chances[order]) - chances[order]  # the token that crosses top_p still belongs
    chances[order[before >= sampling.top_p]] = 0.0
    return np.asarray(chances / chances.sum())


def choose(logits: Array, sampling: Sampling, rng: np.random.Generator) -> int:
    """The next token's id."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    return int(rng.choice(len(logits), p=probabilities(logits, sampling)))


class TextStream:
    """Turns tokens into text as they come, and never gives out half a character.

    A token can end inside a UTF-8 character, and can look different after another one: only a window of tokens that
    begins and ends at whole characters is decoded, and what it adds to the window before is new.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._window = self._shown = 0  # tokens before the window, and tokens given out

    def push(self, token: int) -> str:
        """The text that this token completes; empty inside a character."""
        self._ids.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """What is left at the end, whole or not."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._decode(self._ids[self._window : self._shown])
        now = self._decode(self._ids[self._window :])
        if len(now) <= len(before) or (now.endswith(HALF) and not final):
            return ""
        self._window, self._shown = self._shown, len(self._ids)
        return now[len(before) :]


def chat_prompt(messages: Sequence[Message], generation: Generation, assets: Assets) -> str:
    """The messages in the form the model was trained on, by the template in the bundle.

    A template is a program from a folder: it runs in a sandbox that reaches neither files nor Python's insides.
    """
    if CHAT_TEMPLATE not in assets:
        raise InvalidInput("this bundle carries no chat template: give the prompt without --chat")
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ToolchainMissing("chat templates need jinja2: pip install 'edgekit[text]'") from error

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    try:
        text: str = environment.from_string(asset_text(assets, CHAT_TEMPLATE)).render(
            messages=[dict(message) for message in messages], add_generation_prompt=True, **generation.special_tokens
        )
    except Exception as error:  # a template can raise anything
        raise InvalidInput(f"the bundle's chat template refuses these messages: {error}") from error
    return text


def checked_ids(ids: Sequence[int], generation: Generation) -> list[int]:
    """The prompt's ids, if the model can take them and has room to answer."""
    wrong = [token for token in ids if not 0 <= token < generation.vocabulary]
    if wrong:
        raise InvalidInput(f"token {wrong[0]} of the prompt is outside the model's {generation.vocabulary} tokens")
    if not ids:
        raise InvalidInput("the prompt is empty: give at least one token")
    if len(ids) > generation.context:
        raise InvalidInput(
            f"the prompt has {len(ids)} tokens, and this bundle's cache holds {generation.context}: shorten it, or "
            f"export again with --context {2 ** (len(ids) + 64).bit_length()}"
        )
    return list(ids)


def tokenizer_of(assets: Assets) -> Any:
    """The bundle's tokenizer. Raises `InvalidInput` where it has none."""
    if TOKENIZER not in assets:
        raise InvalidInput(
            "this bundle carries no tokenizer: put tokenizer.json into the model's folder and export again"
        )
    return open_tokenizer(assets, TOKENIZER)
