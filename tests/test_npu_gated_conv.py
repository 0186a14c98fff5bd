"""The gated convolution against transformers' own, against itself token by token, and in the place of attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgekit.errors import InvalidInput, UnknownName
from edgekit.npu.gated_conv import GatedConv, replace_attention

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


def layer(width: int = 8, kernel: int = 3, dtype: torch.dtype = torch.float64, **options: bool) -> GatedConv:
    torch.manual_seed(0)
    return GatedConv(width, kernel, **options).to(dtype).eval()


def streamed(mixer: GatedConv, hidden: Tensor, chunks: list[int]) -> Tensor:
    state, parts = mixer.state(len(hidden)), []
    for part in hidden.split(chunks, 3):
        answer, state = mixer.stream(part, state)
        assert state.shape == (len(hidden), mixer.width, 1, mixer.kernel - 1)
        parts.append(answer)
    return torch.cat(parts, 3)


@settings(deadline=None, max_examples=60)
@given(
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    kernel=st.integers(2, 6),
    width=st.sampled_from([1, 4, 32]),
    batch=st.integers(1, 3),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_any_chunking_gives_the_full_sequence(
    chunks: list[int], kernel: int, width: int, batch: int, dtype: torch.dtype, seed: int
) -> None:
    mixer = layer(width, kernel, dtype, bias=True)
    hidden = torch.randn(batch, width, 1, sum(chunks), dtype=dtype, generator=torch.Generator().manual_seed(seed))
    assert (streamed(mixer, hidden, chunks) - mixer(hidden)).abs().max() <= TOLERANCES[dtype]


@torch.no_grad()
def test_a_token_changes_itself_and_what_comes_after() -> None:
    mixer, hidden = layer(), torch.randn(1, 8, 1, 10, dtype=torch.float64)
    other = hidden.clone()
    other[..., 4] += 1
    changed = (mixer(other) - mixer(hidden)).abs().amax((0, 1, 2)) > 0
    assert changed.tolist() == [4 <= place < 7 for place in range(10)]
    centred = GatedConv(8, ahead=1).double().eval()
    changed = (centred(other) - centred(hidden)).abs().amax((0, 1, 2)) > 0
    assert changed.tolist() == [3 <= place < 6 for place in range(10)]


@torch.no_grad()
def test_it_is_the_layer_of_transformers() -> None:
    from transformers.models.lfm2.configuration_lfm2 import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    kinds = ["conv", "full_attention"]  # without them every layer of the config is attention
    config = Lfm2Config(hidden_size=16, num_hidden_layers=2, conv_L_cache=4, conv_bias=True, layer_types=kinds)
    torch.manual_seed(0)
    theirs = Lfm2ShortConv(config, 0).double().eval()
    ours = layer(16, 4, bias=True)
    for name in ("in_proj", "conv", "out_proj"):
        from_, to = getattr(theirs, name), getattr(ours, name)
        to.weight.copy_(from_.weight.reshape(to.weight.shape))
        to.bias.copy_(from_.bias)
    hidden = torch.randn(2, 11, 16, dtype=torch.float64)
    answer = ours(hidden.transpose(1, 2)[:, :, None]).squeeze(2).transpose(1, 2)
    assert torch.allclose(answer, theirs(hidden), rtol=0, atol=1e-12)


def test_its_graph_is_what_npus_run() -> None:
    program = torch.export.export(layer(dtype=torch.float32), (torch.randn(1, 8, 1, 7),), strict=False)
    ops = [str(node.target).split(".")[1] for node in program.graph.nodes if "aten" in str(node.target)]
    assert sorted(ops) == ["chunk", "conv2d", "conv2d", "conv2d", "mul", "mul", "pad"]


@pytest.mark.parametrize(("kernel", "ahead"), [(1, 0), (3, 3), (3, -1)])
def test_kernels_that_see_nothing_are_refused(kernel: int, ahead: int) -> None:
    with pytest.raises(InvalidInput, match="take 2 tokens or more"):
        GatedConv(4, kernel, ahead=ahead)


def test_what_looks_ahead_cannot_stream() -> None:
    mixer = GatedConv(4, ahead=1)
    with pytest.raises(InvalidInput, match="sees 1 tokens ahead"):
        mixer.stream(torch.zeros(1, 4, 1, 2), mixer.state())


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        attended, weights = self.attention(tokens, tokens, tokens)
        return self.mlp(tokens + attended) if weights is None else self.mlp(tokens + attended) + 0 * weights.sum()


class Unpacks(Layer):
    def forward(self, tokens: Tensor) -> Tensor:
        attended, weights = self.attention(tokens, tokens, tokens)
        return self.mlp(attended) + weights.sum()


def test_it_takes_the_place_of_attention_in_a_copy() -> None:
    torch.manual_seed(0)
    model, tokens = Layer().eval(), torch.randn(2, 5, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = replace_attention(model, "attention", {"tokens": tokens}, kernel=4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    mixer = changed.attention.mixer
    assert (mixer.width, mixer.kernel) == (8, 4)
    mixed = mixer(tokens.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
    assert torch.equal(changed(tokens=tokens), changed.mlp(tokens + mixed))
    again = replace_attention(model, "attention", {"tokens": tokens}, kernel=4)
    assert torch.equal(again(tokens=tokens), changed(tokens=tokens))


def test_it_takes_the_place_of_attention_of_transformers() -> None:
    from transformers import Lfm2Config, Lfm2Model

    config = Lfm2Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=10, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
    )  # fmt: skip
    feeds = {"input_ids": torch.arange(6)[None]}
    changed = replace_attention(Lfm2Model(config).eval(), "layers.1.self_attn", feeds)
    assert changed(**feeds).last_hidden_state.shape == (1, 6, 16)
    assert isinstance(changed.layers[1].self_attn.mixer, GatedConv)


def test_places_that_are_no_attention_are_named() -> None:
    feeds = {"tokens": torch.randn(2, 5, 8)}
    with pytest.raises(UnknownName, match="Did you mean 'attention'"):
        replace_attention(Layer(), "atention", feeds)
    with pytest.raises(InvalidInput, match=r"attention\.out_proj"):
        replace_attention(Layer(), "attention.out_proj", feeds)  # computed without a call of the module
    with pytest.raises(InvalidInput, match=r"needs more of its attention 'attention' than its output"):
        replace_attention(Unpacks(), "attention", feeds)
    first = Layer()
    first.attention.batch_first = False
    with pytest.raises(InvalidInput, match="batch_first=True"):
        replace_attention(first, "attention", feeds)
