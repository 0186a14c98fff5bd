"""A gated short convolution in the place of an attention layer: what it knows of the past does not grow with it.

    gate_in, gate_out, x = in_proj(hidden);  y = out_proj(gate_out * conv(gate_in * x))

Products, a depthwise convolution and multiplications on `[B, width, 1, S]`: no softmax, no reshape, no size that
depends on the input. Source: LFM2 (arXiv 2511.23404), as transformers' `Lfm2ShortConv` computes it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from edgekit.distill.cutting.call import by_name, positions
from edgekit.errors import InvalidInput, UnsupportedModel, unknown_name

KERNEL = 3  # tokens that a token sees, itself included; `conv_L_cache` of LFM2


class GatedConv(nn.Module):
    """The layer, on tokens along the last axis: `[B, width, 1, S]` to the same.

    `ahead` of the `kernel` tokens lie after the one they change: 0 for a decoder, which may not see them.
    """

    def __init__(self, width: int, kernel: int = KERNEL, *, ahead: int = 0, bias: bool = False) -> None:
        super().__init__()
        if kernel < 2 or not 0 <= ahead < kernel:
            raise InvalidInput(f"a kernel of {kernel} with {ahead} ahead: take 2 tokens or more, fewer of them ahead")
        self.width, self.kernel, self.ahead = width, kernel, ahead
        self.in_proj = nn.Conv2d(width, 3 * width, 1, bias=bias)
        self.conv = nn.Conv2d(width, width, (1, kernel), groups=width, bias=bias)
        self.out_proj = nn.Conv2d(width, width, 1, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The whole sequence at once."""
        gated, gate = self._gated(hidden)
        return self._mixed(functional.pad(gated, (self.kernel - 1 - self.ahead, self.ahead)), gate)

    def state(self, batch: int = 1) -> Tensor:
        """What is known before the first token: zeros `[batch, width, 1, kernel - 1]`."""
        return self.conv.weight.new_zeros(batch, self.width, 1, self.kernel - 1)

    def stream(self, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next tokens, one or more, and the state after them. Raises `InvalidInput` where it would look ahead."""
        if self.ahead:
            raise InvalidInput(f"this layer sees {self.ahead} tokens ahead, so it cannot be asked token by token")
        gated, gate = self._gated(hidden)
        seen = torch.cat((state, gated), 3)
        return self._mixed(seen, gate), seen[..., 1 - self.kernel :]

    def _gated(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        gate_in, gate_out, x = self.in_proj(hidden).chunk(3, 1)
        return gate_in * x, gate_out

    def _mixed(self, seen: Tensor, gate: Tensor) -> Tensor:
        mixed: Tensor = self.out_proj(gate * self.conv(seen))
        return mixed


class GatedConvAttention(nn.Module):
    """A gated convolution that is called like an attention module, on `[B, S, width]`, and returns what that did.

    Attention weights, and whatever else that returned, are None: nothing computes them any more.
    """

    def __init__(self, replaced: nn.Module, mixer: GatedConv, hidden: str, structure: Any) -> None:
        super().__init__()
        for name, value in vars(replaced).items():  # what the layer around it may ask for: embed_dim, head_dim
            if not name.startswith("_") and not hasattr(self, name):
                setattr(self, name, value)
        self.mixer = mixer
        self._positions, self._hidden, self._structure = positions(replaced), hidden, structure

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Of all that an attention module takes, only the tokens are read: masks and positions have no part in it."""
        hidden = by_name(self._positions, args, kwargs)[self._hidden]
        mixed = self.mixer(hidden.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        return pytree.tree_map(lambda leaf: mixed if leaf is True else None, self._structure)


def replace_attention(
    module: nn.Module, path: str, example: Mapping[str, Tensor], *, kernel: int = KERNEL, ahead: int = 0, seed: int = 0
) -> nn.Module:
    """A copy of a model whose attention module at `path` is a gated convolution of its width, with random weights.

    `example` is one call of the model, by keyword. Raises `UnknownName` where there is no such module, and
    `InvalidInput` where it is not called, does not take tokens `[B, S, width]`, or the model needs more of it than its
    output.
    """
    paths = dict(module.named_modules())
    if path not in paths:
        raise unknown_name("module of this model", path, [name for name in paths if name])
    replaced = paths[path]
    if getattr(replaced, "batch_first", True) is False:
        raise InvalidInput(f"'{path}' takes tokens [S, B, width]: build it with batch_first=True")
    hidden, result = _call(module, replaced, path, example)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer = GatedConv(hidden[1].shape[2], kernel, ahead=ahead).to(hidden[1].dtype)
    stand_in = GatedConvAttention(replaced, mixer, hidden[0], _structure(result, hidden[1], path))
    changed = copy.deepcopy(module, {id(replaced): stand_in}).eval()  # the attention itself is not copied
    try:
        with torch.no_grad():
            changed(**example)
    except (AttributeError, TypeError) as error:
        raise InvalidInput(f"the model needs more of its attention '{path}' than its output: {error}") from error
    return changed


def _call(
    module: nn.Module, replaced: nn.Module, path: str, example: Mapping[str, Tensor]
) -> tuple[tuple[str, Tensor], Any]:
    """The name and the value of the tokens that an attention module was called with, and what it returned."""
    seen: list[tuple[dict[str, Any], Any]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        seen.append((by_name(positions(replaced), args, kwargs), result))

    handle = replaced.register_forward_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            module(**example)
    finally:
        handle.remove()
    if not seen:
        raise InvalidInput(f"this call of the model does not reach '{path}': give the path of a module that it calls")
    arguments, result = seen[0]
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point():
            return (name, value), result
    raise InvalidInput(f"'{path}' takes no tokens [B, S, width] of floats, so no gated convolution can stand for it")


def _structure(result: Any, hidden: Tensor, path: str) -> Any:
    """What was returned with True in the place of the new tokens, and False in that of other values."""
    leaves, spec = pytree.tree_flatten(result)
    found = [isinstance(leaf, Tensor) and leaf.shape == hidden.shape for leaf in leaves]
    if found.count(True) != 1:
        raise UnsupportedModel(
            f"'{path}' returns {found.count(True)} tensors of the shape of its tokens: one is needed"
        )
    return pytree.tree_unflatten(found, spec)
