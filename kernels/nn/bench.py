"""How fast a transformer decodes with dense or coded weights: greedily, one token at a time, under a CUDA graph."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgekit.codec import encode
from edgekit.kernels._timing import seconds_per_call
from edgekit.kernels._trained_like import layer
from edgekit.kernels.nn.loading import KINDS, Resident, swap, without_weights
from edgekit.kernels.nn.modules import CodedWeight, resident_bytes
from edgekit.types import Value

STEPS = 100  # timed, after two


class Sizes(Value, frozen=True, kw_only=True):
    """A Llama with one product for q, k and v and one for gate and up, as serving engines have it: 1.04 G weights."""

    layers: int = 16
    hidden: int = 2048
    inner: int = 8192
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 32_000
    context: int = 256


class DecodeSpeed(Value, frozen=True, kw_only=True):
    """One run; models of equal outputs have equal tokens."""

    resident: Resident
    compiled: bool
    tokens_per_s: float
    weights: int
    weight_bytes: int
    tokens: tuple[int, ...]


def decode_speed(resident: Resident, compiled: bool = False, sizes: Sizes | None = None) -> DecodeSpeed:
    """Batch 1 on the current CUDA device. `compiled` lets torch.compile fuse what lies between the products."""
    decoder = Decoder(resident, sizes or Sizes(), torch.device("cuda"))
    step = torch.compile(decoder.step) if compiled else decoder.step
    with torch.no_grad():
        seconds = seconds_per_call([step], repeats=STEPS, least_calls=1)
    return DecodeSpeed(
        resident=resident,
        compiled=compiled,
        tokens_per_s=1 / seconds,
        weights=decoder.weights,
        weight_bytes=resident_bytes(decoder.model),
        tokens=tuple(decoder.tokens.tolist()),
    )


class Decoder:
    """A model of random weights and what it has decoded so far. `step` has no input: a graph of it decodes on."""

    def __init__(self, resident: Resident, sizes: Sizes, device: torch.device) -> None:
        with without_weights():
            self.model = _Llama(sizes)
        self.weights = sum(parameter.numel() for parameter in self.model.parameters())
        _fill(self.model, resident, device)
        self.model.to(device)
        self.token = torch.ones(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(sizes.context, dtype=torch.int64, device=device)
        cache = (sizes.layers, 2, sizes.kv_heads, sizes.context, sizes.hidden // sizes.heads)
        self.cache = torch.zeros(cache, dtype=torch.bfloat16, device=device)

    def step(self) -> None:
        """Decode one token."""
        logits = self.model(self.token, self.position, self.cache)
        self.token.copy_(logits.argmax(-1))
        self.tokens.index_copy_(0, self.position, self.token)
        self.position.add_(1)


class _Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        head = sizes.hidden // sizes.heads
        self.heads = [sizes.heads, sizes.kv_heads, sizes.kv_heads]
        self.attention_norm = nn.RMSNorm(sizes.hidden)
        self.qkv = nn.Linear(sizes.hidden, sum(self.heads) * head, bias=False)
        self.out = nn.Linear(sizes.hidden, sizes.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(sizes.hidden)
        self.gate_up = nn.Linear(sizes.hidden, 2 * sizes.inner, bias=False)
        self.down = nn.Linear(sizes.inner, sizes.hidden, bias=False)

    def forward(
        self, x: torch.Tensor, angles: torch.Tensor, position: torch.Tensor, mask: torch.Tensor, cache: torch.Tensor
    ) -> torch.Tensor:
        """`x` is `[1, hidden]`; the query heads that share a key are that key's queries."""
        q, k, v = self.qkv(self.attention_norm(x)).view(sum(self.heads), -1).split(self.heads)
        keys, values = cache.unbind()
        keys.index_copy_(1, position, _turned(k, angles)[:, None])
        values.index_copy_(1, position, v[:, None])
        queries = _turned(q, angles).view(self.heads[1], -1, q.shape[-1])
        read = functional.scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask)
        x = x + self.out(read.reshape(x.shape))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        down: torch.Tensor = self.down(functional.silu(gate) * up)
        return x + down


class _Llama(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        half = sizes.hidden // sizes.heads // 2
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.blocks = nn.ModuleList(_Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.hidden)
        self.head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("frequencies", 1e4 ** -(torch.arange(half) / half), persistent=False)
        self.register_buffer("places", torch.arange(sizes.context), persistent=False)

    def forward(self, token: torch.Tensor, position: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        """Logits `[1, vocabulary]`."""
        angles = position * self.get_buffer("frequencies")
        mask = (self.get_buffer("places") <= position)[None]
        x = self.embedding(token)
        for block, entries in zip(self.blocks, cache.unbind(), strict=True):
            x = block(x, angles, position, mask, entries)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of `[heads, d]`."""
    a, b = x.float().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def _fill(model: nn.Module, resident: Resident, device: torch.device) -> None:
    """Layers of one size get copies of one matrix: coding takes longer than copying, and is not what is timed."""
    made: dict[torch.Size, nn.Parameter | CodedWeight] = {}
    given: dict[torch.Tensor, nn.Parameter | CodedWeight] = {}  # tied layers have the same
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.RMSNorm):
            module.weight = nn.Parameter(torch.ones_like(module.weight, dtype=torch.bfloat16, device=device))
        elif isinstance(module, nn.Linear | nn.Embedding):
            empty = module.weight
            if empty.shape not in made:
                made[empty.shape] = _weight(empty.shape, resident, device)
            weight = given.setdefault(empty, copy.deepcopy(made[empty.shape]))
            if isinstance(weight, CodedWeight):
                swap(model, path, weight)
            else:
                module.weight = weight


def _weight(shape: torch.Size, resident: Resident, device: torch.device) -> nn.Parameter | CodedWeight:
    rows, columns = shape
    bits = layer(rows, columns, seed=shape.numel())
    if resident == "bf16":
        dense = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
        return nn.Parameter(dense.to(device), requires_grad=False)
    kind = KINDS[resident]
    return kind.upload(encode(bits, kind.codec).parts, bits.shape, device)
