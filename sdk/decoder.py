"""A transformers causal language model as one step of decoding: a module with the KV cache among its inputs.

    tokens       int64 [1, S]        S tokens that follow each other
    position     int64 [1]           the place of the first one in the text
    key_<i>      float [1, H, D, L]  layer i's keys of the tokens before, in the first `position` of L places
    value_<i>    float [1, H, L, D]  and its values
    -> logits    float [1, V]        after the last of the S tokens
    -> new_key_<i> [1, H, D, S], new_value_<i> [1, H, S, D]: what to write at `position`

Whoever calls it writes the new entries into the cache, so that a step moves S places and not L. Keys lie transposed,
as the product with the queries wants them. Every architecture runs its own code (norms, rotary embeddings, windows,
soft caps); only the attention product and the place of the cache are ours, through the interfaces transformers has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedModel
from edgekit.model import with_names

ATTENTION = "edgekit_decoder"  # our entry in transformers' tables of attention functions and masks
MASKED = -1e4  # exp of it is 0 in every float, and float16 holds it


class DecoderStep(nn.Module):
    """One step of a causal language model over a chunk of tokens; see the module's first lines."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        _register()
        self.model, self.layers = model, layers
        self.model.set_attn_implementation(ATTENTION)  # type: ignore[operator]

    def forward(self, tokens: Tensor, position: Tensor, **caches: Tensor) -> dict[str, Tensor]:
        """Logits after the last token, and the new cache entries of every layer."""
        past = [(caches[f"key_{i}"], caches[f"value_{i}"]) for i in range(self.layers)]
        chunk = _Chunk(position, past)
        places = (torch.arange(tokens.shape[1]) + position).unsqueeze(0)
        result = self.model(
            input_ids=tokens,
            position_ids=places,
            past_key_values=chunk,
            use_cache=True,
            logits_to_keep=1,
            decoder_chunk=chunk,
        )
        outputs = {"logits": result.logits[:, 0]}
        for layer, (key, value) in sorted(chunk.new.items()):
            outputs |= {f"new_key_{layer}": key.transpose(2, 3).contiguous(), f"new_value_{layer}": value}
        return outputs


class _Chunk:
    """What transformers takes for the cache of one call: it keeps the new entries apart from the old ones."""

    is_compileable = False

    def __init__(self, position: Tensor, past: list[tuple[Tensor, Tensor]]) -> None:
        self.position, self.past = position, past
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.new[layer_idx] = (key, value)
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> Tensor:
        return self.position

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:
        return self.position

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.past[0][1].shape[2], 0


def decoder_step(model: nn.Module, context: int, chunk: int) -> tuple[nn.Module, dict[str, Tensor], int]:
    """The step of a transformers `...ForCausalLM`, an example of its inputs, and the size of its vocabulary.

    Raises `UnsupportedModel`.
    """
    vocabulary, reference = _after_one_token(model)
    example = {"tokens": torch.ones(1, chunk, dtype=torch.int64), "position": torch.zeros(1, dtype=torch.int64)}
    for layer, (key, value) in enumerate(reference):
        _, heads, _, size = key.shape
        example[f"key_{layer}"] = torch.zeros(1, heads, size, context)
        example[f"value_{layer}"] = torch.zeros(1, heads, context, value.shape[3])
    step = with_names(DecoderStep, tuple(example))(model, len(reference))
    return step.eval(), example, vocabulary


def _after_one_token(model: nn.Module) -> tuple[int, list[tuple[Tensor, Tensor]]]:
    """Vocabulary, and keys and values of every layer after one token, from which the cache's shapes are read."""
    try:
        with torch.no_grad():
            result = model(input_ids=torch.ones(1, 1, dtype=torch.int64), use_cache=True)
        return result.logits.shape[-1], [(layer.keys, layer.values) for layer in result.past_key_values.layers]
    except Exception as error:  # architectures without a plain cache of keys and values
        raise UnsupportedModel(
            f"{type(model).__name__} keeps no plain cache of keys and values ({type(error).__name__}: {error}): every "
            "layer of a language model must attend to such a cache, as in Llama, Qwen, Gemma, Mistral and Phi"
        ) from error


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _mask)


def _mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: Tensor,
    mask_function: Callable[[int, int, Tensor, Tensor], Tensor],
    **_: Any,
) -> Tensor:
    """`[1, 1, S, L + S]` to add to the scores: the architecture's own rule for the cached places and for the chunk."""
    queries = torch.arange(q_length) + q_offset
    places = torch.arange(kv_length)
    cached = mask_function(0, 0, queries[:, None], places[None, :]) & (places < q_offset)[None, :]
    chunk = mask_function(0, 0, queries[:, None], queries[None, :])
    return torch.where(torch.cat([cached, chunk], dim=-1), 0.0, MASKED)[None, None]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    decoder_chunk: _Chunk | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over the cache and the chunk, without joining the two: only their scores meet, in the softmax.

    Query heads that share a key head are rows of one product, so that no key is copied for them.
    """
    if decoder_chunk is None or s_aux is not None:
        raise UnsupportedModel(f"{type(module).__name__} computes attention in a way that a decoder step cannot follow")
    past_key, past_value = decoder_chunk.past[int(module.layer_idx)]  # type: ignore[arg-type]  # nn.Module's getattr
    heads, count, size = query.shape[1:]
    groups, shared, length = past_value.shape[1], heads // past_value.shape[1], past_value.shape[2]
    rows = (query * (size**-0.5 if scaling is None else scaling)).reshape(1, groups, shared * count, size)
    scores = torch.cat([rows @ past_key, rows @ key.transpose(2, 3)], dim=-1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.reshape(1, groups, shared, count, length + count) + attention_mask[:, :, None]
    weights = scores.softmax(-1).reshape(1, groups, shared * count, length + count)
    mixed = weights[..., :length] @ past_value + weights[..., length:] @ value
    return mixed.reshape(1, heads, count, value.shape[-1]).transpose(1, 2).contiguous(), None
