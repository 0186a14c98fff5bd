"""What rewrites leave as it is, and why they say they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekit.graph import capture
from edgekit.layered import layered
from edgekit.npu.rewriting import Example, load, rewrite
from edgekit.npu.rules import npu_rules
from edgekit.source import load as load_model

RULES = npu_rules("qcom-htp-v68")


class Run(nn.Module):
    """A function of x, beside a layer that it may use."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def reasons(name: str, example: Example) -> list[str]:
    """Why a rewrite left places as they were; it must not have acted."""
    model = load_model(example.module.eval(), dict(example.inputs), dynamic=example.dynamic)
    outcomes = list(load(name).apply(layered(capture(model)), RULES))
    assert not [each for each in outcomes if each.reason is None]
    assert all("test_npu_rewrites_refused.py:" in each.place for each in outcomes)
    return [str(each.reason) for each in outcomes]


def attention(module: Any, x: Tensor, between: Callable[[Tensor], Tensor] = lambda q: q) -> tuple[Tensor, Tensor]:
    q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (module.q, module.k, module.v))
    weights = (between(q) @ k.transpose(-2, -1)).softmax(-1)
    return weights @ v, weights


def heads(function: Callable[[nn.Module, Tensor], Any]) -> Example:
    layers = {name: nn.Linear(4, 4) for name in "qkv"}
    return Example(Run(function, **layers), {"x": torch.randn(1, 3, 4)})


def image(function: Callable[[nn.Module, Tensor], Any], *shape: int, **layers: nn.Module) -> Example:
    return Example(Run(function, **layers), {"x": torch.randn(shape)})


REFUSED = {
    "weights that are read too": ("split_heads", heads(attention), "its weights are read elsewhere too"),
    "queries that turn": (
        "split_heads",
        heads(lambda m, x: attention(m, x, torch.cos)[0]),
        "its queries: between layer and product there is cos of 'cos'",
    ),
    "einsum of three": (
        "einsum_to_matmul",
        image(lambda m, x: torch.einsum("ij,jk,kl->il", x, x, x), 3, 3),
        "'ij,jk,kl->il' is of 3 tensors, and a matrix product has two factors",
    ),
    "einsum of a diagonal": (
        "einsum_to_matmul",
        image(lambda m, x: torch.einsum("ii,ij->ij", x, x), 3, 3),
        "'ii,ij->ij' repeats a letter, which takes a diagonal",
    ),
    "einsum with dots": (
        "einsum_to_matmul",
        image(lambda m, x: torch.einsum("...i,...i->...", x, x), 3, 3),
        "'...i,...i->...' leaves letters out: write them all, with '->'",
    ),
    "einsum that sums one factor": (
        "einsum_to_matmul",
        image(lambda m, x: torch.einsum("ij,k->i", x, x[0]), 3, 3),
        "'ij,k->i' sums over a letter of one tensor only: sum before the product",
    ),
    "a mean over channels": (
        "mean_to_pool",
        image(lambda m, x: x.mean(1), 2, 3, 4, 4),
        "it is no mean over all positions of an image or a sequence",
    ),
    "a norm over two axes": (
        "layer_norm_channels",
        image(lambda m, x: m.norm(x), 2, 3, 4, norm=nn.LayerNorm((3, 4))),
        "it is over 2 axes",
    ),
    "a norm in five dimensions": (
        "layer_norm_channels",
        image(lambda m, x: m.norm(x), 1, 2, 2, 2, 4, norm=nn.LayerNorm(4)),
        "its input has 5 dimensions",
    ),
    "a flip of many dimensions": (
        "low_rank",
        image(lambda m, x: x.flip(0), 2, 2, 2, 2, 3, 3),
        "flip works on 6 dimensions at once",
    ),
    "a resize that comes first": (
        "static_shapes",
        image(lambda m, x: nn.functional.interpolate(x, scale_factor=2.0), 1, 3, 4, 4),
        "it resizes the input: leave it out of the model and resize before it",
    ),
    "permutes that something needs": (
        "keep_channels_first",
        image(lambda m, x: m.fc(torch.relu(m.conv(x).permute(0, 2, 3, 1))), 1, 3, 4, 4,
              conv=nn.Conv2d(3, 3, 1), fc=nn.Linear(3, 3)),
        "as many permutes would come as would go",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_place_that_stays_as_it_is_says_why(case: str) -> None:
    name, example, reason = REFUSED[case]
    assert reason in reasons(name, example)


def test_dropout_that_is_random_in_attention_is_left() -> None:
    function = nn.functional.scaled_dot_product_attention
    [reason] = reasons("attention_to_matmul", image(lambda m, x: function(x, x, x, dropout_p=0.5), 1, 2, 3, 4))
    assert reason == "it drops weights at random"


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_torchs_own_attention_comes_apart(batch_first: bool, need_weights: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    nn.init.normal_(layer.in_proj_bias)
    module = Run(lambda m, x: m.attention(x, x, x, need_weights=need_weights)[0], attention=layer)
    model = load_model(module.eval(), {"x": torch.randn(3, 2, 8)})
    rewritten = rewrite(model, RULES, only=["drop_no_ops", "low_rank", "attention_to_matmul", "split_heads"])
    log = {record.name: record for record in rewritten.log}
    assert log["split_heads"].done, log["split_heads"].skipped
    assert rewritten.model.module.get_submodule("attention.in_proj_q0").weight.shape == (4, 8)


def test_dynamic_sizes_become_one_and_the_model_says_so() -> None:
    example = load("static_shapes").example(2)
    model = load_model(example.module.eval(), dict(example.inputs), dynamic=example.dynamic)
    fixed = rewrite(model, RULES, only=["static_shapes"]).model
    length = model.example["x"].shape[1]
    assert fixed.dynamic == ()
    assert [spec.shape[:2] for spec in fixed.inputs] == [(1, length)]
    assert fixed.outputs[0].shape[0] == 1
    assert not [size for value in capture(fixed).graph.find_nodes(op="placeholder")[-1].meta["val"].shape
                for size in [value] if isinstance(size, torch.SymInt)]  # fmt: skip
