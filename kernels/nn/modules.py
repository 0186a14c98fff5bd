"""Linear and embedding layers whose weight stays coded in a `CodedWeight`; tied layers hold the same one."""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar, Self

import torch
from torch import nn

from edgekit.codec import Parts
from edgekit.kernels import df11x, df12


class CodedWeight(nn.Module):
    """A bf16 matrix in coded form, `[N, K]`. Its parts are buffers, so they move and are saved with the model."""

    codec: ClassVar[str]  # the format's name
    ops: ClassVar[ModuleType]

    def __init__(self, parts: df11x.Weights | df12.Weights, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.names = parts._fields
        for name, part in parts._asdict().items():
            self.register_buffer(name, part)

    @classmethod
    def upload(cls, parts: Parts, shape: tuple[int, ...], device: torch.device) -> Self:
        """From what the codec made. Raises `CorruptWeights` for parts that do not fit each other or the shape."""
        return cls(cls.ops.upload(parts, shape, device), shape)

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """As the ops take them."""
        return tuple(self.get_buffer(name) for name in self.names)

    def dense(self) -> torch.Tensor:
        """The weights as they were, bf16 `[N, K]`."""
        dense: torch.Tensor = self.ops.decode(*self.parts, self.shape)
        return dense

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers, bf16 `[..., K]`, the others not decoded; NaN where there is none."""
        rows: torch.Tensor = self.ops.embedding(ids, *self.parts, self.shape)
        return rows

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`x @ w.T + bias` of bf16 `x[..., K]`: bf16 `[..., N]`."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Other weights of this shape take other room: make it before their parts are copied."""
        for name in self.names:
            part, given = self.get_buffer(name), state_dict.get(prefix + name)
            if given is not None and given.shape != part.shape:
                setattr(self, name, part.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *others)


class SmallWeight(CodedWeight):
    """df11x: decoded for each product."""

    codec: ClassVar = "df11x"
    ops: ClassVar = df11x

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The stock product of the whole matrix: of a slice, cuBLAS may sum in another order, and bits would differ."""
        return nn.functional.linear(x, self.dense(), bias)


class FastWeight(CodedWeight):
    """df12: multiplied with in place, for up to 16 rows of `x`."""

    codec: ClassVar = "df12"
    ops: ClassVar = df12

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Summed in float32, in an order of its own."""
        y: torch.Tensor = df12.linear(x, *self.parts, self.shape[0], bias)
        return y


class _Layer(nn.Module):
    def __init__(self, coded: CodedWeight) -> None:
        super().__init__()
        self.coded = coded

    @property
    def weight(self) -> torch.Tensor:
        """The weights as they were, decoded at every access, for code that does not call the layer."""
        return self.coded.dense()

    def extra_repr(self) -> str:
        """`4096, 14336, df12`."""
        return f"{self.coded.shape[1]}, {self.coded.shape[0]}, {self.coded.codec}"


class LosslessLinear(_Layer):
    """`nn.Linear` whose weight stays coded. `x` is bf16 `[..., in_features]`, the result bf16 `[..., out_features]`.

    The weight is frozen; gradients reach `x` through df11x only.
    """

    bias: nn.Parameter | None

    def __init__(self, coded: CodedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__(coded)
        self.out_features, self.in_features = coded.shape
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ w.T + bias`."""
        return self.coded.linear(x, self.bias)


class LosslessEmbedding(_Layer):
    """`nn.Embedding` whose table stays coded: bf16 `[..., embedding_dim]` for int64 or int32 `ids[...]`.

    An id outside the table makes a row of NaN.
    """

    def __init__(self, coded: CodedWeight, padding_idx: int | None = None) -> None:
        super().__init__(coded)
        self.num_embeddings, self.embedding_dim = coded.shape
        self.padding_idx = padding_idx

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of these ids."""
        return self.coded.rows(ids)


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, what is shared counted once."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
