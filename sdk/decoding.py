"""Text from a bundle with a language model: the token loop around a session, and its golden run. No torch needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np

from edgekit.bundle import Bundle, Manifest
from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.generation import (
    GREEDY,
    Generation,
    Message,
    Sampling,
    TextStream,
    chat_prompt,
    checked_ids,
    choose,
    tokenizer_of,
)
from edgekit.inference import open_session
from edgekit.parity import CONFIDENT, GoldenReplay, Tolerance
from edgekit.processing import Array, Arrays
from edgekit.session import Session
from edgekit.types import DynamicDim, Shape, TensorSpec

MAX_TOKENS = 128
CACHES = ("key_", "value_")
CACHE_DTYPES = ("float16", "float32")
MAX_CACHE_BYTES = 16 << 30  # 32 thousand tokens of a model with 7 billion parameters take a quarter of it


class Decoder:
    """One text: it feeds tokens to `run`, which takes one step, and keeps the KV cache."""

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        generation: Generation,
        inputs: Sequence[TensorSpec],
        dynamic: Sequence[DynamicDim],
    ) -> None:
        self.generation = generation
        self.position = 0
        self._run = run
        self._chunks = next(dim.sizes for dim in dynamic if dim.sizes)
        self._caches: Arrays = {
            spec.name: np.zeros(tuple(map(int, spec.shape)), spec.dtype)
            for spec in inputs
            if spec.name.startswith(CACHES)
        }

    @classmethod
    def of(cls, bundle: Bundle, session: Session) -> Decoder:
        """The decoder of an open bundle. Raises `InvalidInput`, `BundleCorrupt` as `generation_of` does."""

        def run(feeds: Arrays) -> Arrays:
            return session.run(feeds)  # looked up at each call: a closed session has another one

        return cls(run, generation_of(bundle), bundle.manifest.inputs, bundle.manifest.dynamic)

    def feed(self, ids: Sequence[int]) -> Array:
        """Append tokens, and return the logits `[V]` after the last. All but the last go in chunks, padded at the end.

        Padding never reaches the cache, and the last token goes alone, so that its logits are those of no padding.
        """
        if self.position + len(ids) > self.generation.context:
            raise InvalidInput(f"the cache holds {self.generation.context} tokens, and {self.position} are in it")
        rest, last = list(ids[:-1]), list(ids[-1:])
        while rest:
            size = min((s for s in self._chunks if s >= len(rest)), default=self._chunks[-1])
            self._step(rest[:size], size)
            rest = rest[size:]
        return self._step(last, 1)

    def _step(self, ids: list[int], size: int) -> Array:
        tokens = np.zeros((1, size), np.int64)
        tokens[0, : len(ids)] = ids
        outputs = self._run({"tokens": tokens, "position": np.array([self.position], np.int64), **self._caches})
        places = slice(self.position, self.position + len(ids))
        for name, cache in self._caches.items():
            new = outputs[f"new_{name}"]
            if name.startswith("key_"):  # keys lie transposed
                cache[..., places] = new[..., : len(ids)]
            else:
                cache[:, :, places] = new[:, :, : len(ids)]
        self.position += len(ids)
        logits: Array = outputs["logits"][0]
        return logits


class Reply:
    """An answer in the making: iterate once for pieces of text as they come; the fields are whole afterwards.

    A session of its own (`owns`) is closed when the text ends, or when the iteration is dropped.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        prompt_ids: list[int],
        max_tokens: int,
        sampling: Sampling,
        *,
        owns: bool,
    ) -> None:
        self.decoder = Decoder.of(bundle, session)
        self.prompt_ids = prompt_ids
        self._opened = session if owns else None
        self.ids: list[int] = []
        self.text = ""
        self.finish: Literal["stop", "length", "context"] | None = None  # why it ended
        self.times_s: list[float] = []  # from the start to each token
        self._max_tokens, self._sampling = max_tokens, sampling
        tokenizer = tokenizer_of(bundle.assets())
        self._stream = TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))

    def __iter__(self) -> Iterator[str]:
        with self._opened or nullcontext():
            for token in self._tokens():
                if piece := self._stream.push(token):
                    self.text += piece
                    yield piece
            if piece := self._stream.flush():
                self.text += piece
                yield piece

    def _tokens(self) -> Iterator[int]:
        """The tokens before a stop id; why they ended is in `finish`."""
        decoder, rng = self.decoder, np.random.default_rng(self._sampling.seed)
        start = perf_counter()
        feed = self.prompt_ids
        while len(self.ids) < self._max_tokens:
            if decoder.position + len(feed) > decoder.generation.context:
                self.finish = "context"
                return
            token = choose(decoder.feed(feed), self._sampling, rng)
            self.times_s.append(perf_counter() - start)
            if token in decoder.generation.stop_ids:
                self.finish = "stop"
                return
            self.ids.append(token)
            yield token
            feed = [token]
        self.finish = "length"


def generate(
    bundle: Bundle | str | Path,
    prompt: str | Sequence[Message],
    *,
    session: Session | None = None,
    max_tokens: int = MAX_TOKENS,
    sampling: Sampling = GREEDY,
    threads: int = 1,
) -> Reply:
    """Continue a prompt, or answer a chat: messages with `role` and `content` go through the bundle's chat template.

    Without `session` it opens one, and closes it when the reply's text ends or its iteration is dropped.

    Raises `InvalidInput` for a bundle without a language model or tokenizer, and a prompt longer than its context.
    """
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if max_tokens < 1:
        raise InvalidInput(f"max_tokens must be 1 or more, not {max_tokens}")
    ids = checked_ids(encode(found, prompt), generation_of(found))
    opened = session or open_session(found, threads=threads)
    return Reply(found, opened, ids, max_tokens, sampling, owns=session is None)


def encode(bundle: Bundle, prompt: str | Sequence[Message]) -> list[int]:
    """The prompt's token ids; a chat template writes special tokens itself."""
    generation, assets = generation_of(bundle), bundle.assets()
    tokenizer = tokenizer_of(assets)
    plain = isinstance(prompt, str)
    text = prompt if isinstance(prompt, str) else chat_prompt(prompt, generation, assets)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=plain).ids
    return ids


def generation_of(bundle: Bundle) -> Generation:
    """What the bundle knows about making text.

    Raises `InvalidInput` where it has no language model, `BundleCorrupt` where its tensors are not a decoder step's.
    """
    manifest = bundle.manifest
    if manifest.generation is None:
        raise InvalidInput(f"'{manifest.name}' is no language model: run it with --input instead of --prompt")
    if wrong := _contradiction(manifest, manifest.generation):
        raise BundleCorrupt(f"'{bundle.path}' cannot make text: its manifest {wrong}; export it again")
    return manifest.generation


def _contradiction(manifest: Manifest, generation: Generation) -> str | None:
    """Where the manifest's tensors are not those that `edgekit.decoder` lists."""
    context, sizes = generation.context, [dim.sizes for dim in manifest.dynamic]
    if len(sizes) != 1 or sizes[0][:1] != (1,) or sizes[0][-1] > context:
        return f"needs one list of sizes, the tokens of a call, from 1 to at most its context of {context}"
    chunk = manifest.dynamic[0].axis_name
    caches = [spec for spec in manifest.inputs if spec.name.startswith(CACHES)]
    if sorted(spec.name for spec in caches) != sorted(f"{kind}{i}" for kind in CACHES for i in range(len(caches) // 2)):
        return f"names the caches {', '.join(spec.name for spec in caches)}, not a key and a value of every layer"
    if len(caches) != 2 * generation.layers:
        return f"has {len(caches)} caches for {generation.layers} layers"
    made: dict[str, Shape] = {"logits": (1, generation.vocabulary)}
    for spec in caches:
        place = 3 if spec.name.startswith("key_") else 2
        sane = len(spec.shape) == 4 and all(isinstance(size, int) and size > 0 for size in spec.shape)
        if not sane or (spec.shape[0], spec.shape[place]) != (1, context) or spec.dtype not in CACHE_DTYPES:
            return f"has the input {spec}, which is no cache of {context} places"
        made[f"new_{spec.name}"] = (*spec.shape[:place], chunk, *spec.shape[place + 1 :])
    held = sum(math.prod(map(int, spec.shape)) * np.dtype(spec.dtype).itemsize for spec in caches)
    if held > MAX_CACHE_BYTES:
        return f"has caches of {held / 1e9:.0f} GB, and no sane one has more than {MAX_CACHE_BYTES / 1e9:.0f} GB"
    fed = {spec.name: (spec.dtype, spec.shape) for spec in manifest.inputs if spec not in caches}
    if fed != {"tokens": ("int64", (1, chunk)), "position": ("int64", (1,))}:
        return "has other inputs than tokens, position and caches"
    found = {spec.name: spec.shape for spec in manifest.outputs}
    wrong = sorted(name for name in found.keys() | made.keys() if found.get(name) != made.get(name))
    return f"has the output {wrong[0]} as {found.get(wrong[0])}, not as {made.get(wrong[0])}" if wrong else None


def timed_text(decoder: Decoder, prompt: Sequence[int], count: int) -> tuple[list[float], list[int]]:
    """The `count` likeliest tokens, fewer where the cache is full, and the seconds from the start to each."""
    times: list[float] = []
    ids: list[int] = []
    feed = list(prompt)
    start = perf_counter()
    for _ in range(min(count, decoder.generation.context - len(prompt))):
        feed = [int(decoder.feed(feed).argmax())]
        times.append(perf_counter() - start)
        ids += feed
    return times, ids


def replay(session: Session, bundle: Bundle, tolerance: Tolerance) -> GoldenReplay | None:
    """Feed the golden run's own tokens and compare each choice with PyTorch's; None where a bundle has none.

    A gate of 1 asks for every token. A lower one counts the tokens PyTorch is sure of: where two are about as likely,
    any rounding chooses, and one other choice would make all that follow another text.
    """
    golden = bundle.manifest.generation and bundle.manifest.generation.golden
    if not golden:
        return None
    decoder, chosen = Decoder.of(bundle, session), []
    feed = golden.prompt_ids
    for token in golden.ids:
        chosen.append(int(decoder.feed(feed).argmax()))
        feed = (token,)
    least = tolerance.top1_agreement_min
    sure = CONFIDENT if least is None or least < 1 else 0.0
    judged = [i for i, p in enumerate(golden.probabilities) if p > sure]
    wrong = [i for i, (got, want) in enumerate(zip(chosen, golden.ids, strict=True)) if got != want]
    return GoldenReplay(
        tokens=len(golden.ids),
        agreeing=len(golden.ids) - len(wrong),
        judged=len(judged),
        judged_agreeing=len([i for i in judged if i not in wrong]),
        first_difference=_difference(bundle, wrong[0], chosen[wrong[0]], golden.ids[wrong[0]]) if wrong else None,
    )


def _difference(bundle: Bundle, index: int, got: int, want: int) -> str:
    def shown(token: int) -> str:
        assets = bundle.assets()
        return f"{token} {tokenizer_of(assets).decode([token])!r}" if "tokenizer.json" in assets else str(token)

    return f"token {index} is {shown(got)} where PyTorch has {shown(want)}"
