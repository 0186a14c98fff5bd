"""What rewrites leave as it is: every refusal says why, and applying the rewrite there would have been wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.bench._npu_rewrites import RULES
from edgekit.graph import capture
from edgekit.layered import LayeredModule, layered
from edgekit.npu.channels import POSITIVE
from edgekit.npu.products import Owners
from edgekit.npu.rewrites import (
    _affine,
    _branches,
    center_residual,
    equalize,
    finite_masks,
    rotate_residual,
    smooth_outliers,
    space_to_depth_stem,
)
from edgekit.npu.rewrites._examples import worn
from edgekit.npu.rewriting import Outcome, load, proof
from edgekit.source import load as load_model

WRONG = 1e-3  # relative: far above rounding
Patch = tuple[Any, str, Any]
Forward = Callable[[Any, Tensor], Any]


class Of(nn.Module):
    """Layers by name, and what is computed with them."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, input: Tensor) -> Any:
        return self.compute(self, input)


def nothing(*_: Any) -> None:
    """In place of a check: nothing stands in the way."""


def attempt(name: str, module: nn.Module, input: Tensor) -> tuple[list[Outcome], Callable[[], float]]:
    """What a rewrite says of a module, and a function that gives the error of applying it."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
            layer.reset_parameters()
    model = load_model(worn(module).eval(), {"input": input})
    traced: LayeredModule = layered(capture(model))
    outcomes = list(load(name).apply(layered(capture(model)), RULES))
    return outcomes, lambda: proof(load(name), traced, RULES, model.example)


def refused(name: str, module: nn.Module, input: Tensor, words: str) -> Callable[[], float]:
    outcomes, error = attempt(name, module, input)
    reasons = [each.reason or "" for each in outcomes]
    assert any(words in reason for reason in reasons), reasons
    return error


def through(name: str) -> dict[str, Any]:
    """The ops that let a positive factor through, and one that does not."""
    return POSITIVE | {name: POSITIVE["relu"]}


DRAWN = torch.Generator().manual_seed(0)
IMAGE, TOKENS = torch.randn(2, 4, 6, 6, generator=DRAWN), torch.randn(2, 5, 4, generator=DRAWN)
CASES: list[tuple[str, str, nn.Module, Tensor, list[Patch]]] = [
    ("fold_batch_norm_forward", "puts zeros around",
     nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)), IMAGE, [(_affine, "_why_not", nothing)]),
    ("fold_batch_norm_forward", "puts zeros around",
     nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3)), IMAGE, [(_affine, "_why_not", nothing)]),
    ("fold_batch_norm_forward", "'relu'",
     nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)), IMAGE, [(_affine, "_why_not", nothing)]),
    ("fold_batch_norm", "reads what it normalises too",
     Of(lambda m, x: (y := m.conv(x), m.norm(y)), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), IMAGE, []),
    ("fold_norm_affine", "'add'",
     Of(lambda m, x: (y := m.norm(x)) + m.fc(y), norm=nn.LayerNorm(4), fc=nn.Linear(4, 4)), TOKENS,
     [(_affine, "_why_not", nothing)]),
    ("fold_norm_affine", "the model returns it",
     Of(lambda m, x: (y := m.norm(x), m.fc(y)), norm=nn.LayerNorm(4), fc=nn.Linear(4, 4)), TOKENS,
     [(_affine, "_why_not", nothing)]),
    ("fold_norm_affine", "along another axis",
     Of(lambda m, x: m.fc(m.norm(x).mT), norm=nn.LayerNorm(4), fc=nn.Linear(4, 4)), TOKENS[:, :4],
     [(_affine, "_why_not", nothing)]),
    ("center_residual", "the model returns",
     Of(lambda m, x: (y := m.fc(x), m.norm(y)), fc=nn.Linear(4, 4), norm=nn.LayerNorm(4)), TOKENS,
     [(center_residual, "_why_not", nothing)]),
    ("center_residual", "reads its input, and its mean",
     Of(lambda m, x: m.norm(y := m.fc(x)) + m.rms(y), fc=nn.Linear(4, 4), norm=nn.LayerNorm(4), rms=nn.RMSNorm(4)),
     TOKENS, [(center_residual, "_why_not", nothing)]),
    ("center_residual", "the model's input writes into it",
     Of(lambda m, x: m.norm(x), norm=nn.LayerNorm(4)), TOKENS, [(center_residual, "_why_not", nothing)]),
    ("center_residual", "in 2 groups",
     Of(lambda m, x: m.norm(m.conv(x).flatten(2).mT), conv=nn.Conv2d(4, 4, 1, groups=2), norm=nn.LayerNorm(4)), IMAGE,
     []),
    ("rotate_residual", "its factors stand between",
     Of(lambda m, x: m.head(m.norm(m.fc(x))), fc=nn.Linear(4, 4), norm=nn.RMSNorm(4), head=nn.Linear(4, 2)), TOKENS,
     [(rotate_residual, "_why_not", nothing)]),
    ("rotate_residual", "subtracts a mean",
     Of(lambda m, x: m.head(m.norm(m.fc(x))), fc=nn.Linear(4, 4), head=nn.Linear(4, 2),
        norm=nn.LayerNorm(4, elementwise_affine=False)), TOKENS, [(rotate_residual, "_why_not", nothing)]),
    ("rotate_residual", "'gelu'",
     Of(lambda m, x: m.head(functional.gelu(m.norm(m.fc(x)))), fc=nn.Linear(4, 4), head=nn.Linear(4, 2),
        norm=nn.RMSNorm(4, elementwise_affine=False)), TOKENS, [(rotate_residual, "_why_not", nothing)]),
    ("rotate_residual", "the model returns it",
     Of(lambda m, x: (y := m.fc(x), m.head(m.norm(y))), fc=nn.Linear(4, 4), head=nn.Linear(4, 2),
        norm=nn.RMSNorm(4, elementwise_affine=False)), TOKENS, [(rotate_residual, "_why_not", nothing)]),
    *(("equalize", f"'{op}'", nn.Sequential(nn.Conv2d(4, 6, 3), layer, nn.Conv2d(6, 2, 1)), IMAGE * 9,
       [(equalize, "ACTIVATIONS", ()), (equalize, "POSITIVE", through(op))])
      for op, layer in (("hardtanh", nn.ReLU6()), ("relu6", Of(lambda m, x: functional.relu6(x))), ("gelu", nn.GELU()),
                        ("silu", nn.SiLU()), ("hardswish", nn.Hardswish()))),
    ("smooth_outliers", "'gelu'",
     nn.Sequential(nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 4)), TOKENS,
     [(smooth_outliers, "_why_not", nothing), (smooth_outliers, "POSITIVE", through("gelu"))]),
    ("smooth_outliers", "joins it",
     Of(lambda m, x: m.fc(m.norm(x) + x), norm=nn.LayerNorm(4), fc=nn.Linear(4, 4)), TOKENS,
     [(smooth_outliers, "_why_not", nothing)]),
    ("space_to_depth_stem", "its window is dilated",
     nn.Sequential(nn.Conv2d(4, 2, 2, stride=2, dilation=2)), IMAGE, [(space_to_depth_stem, "_why_not", nothing)]),
    ("merge_branches", "do not lie within each other",
     Of(lambda m, x: m.one(x) + m.two(x), one=nn.Conv2d(4, 4, 3, padding=1),
        two=nn.Conv2d(4, 4, 3, padding=2, dilation=2)), IMAGE,
     [(_branches, "_placed", lambda small, large: small.product.weight)]),
    ("merge_branches", "do not lie within each other",
     Of(lambda m, x: m.one(x) + m.two(x), one=nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        two=nn.Conv2d(4, 4, (1, 3), padding=(0, 1))), IMAGE, []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words", "module", "input", "patches"), CASES)
def test_a_refusal_says_why_and_without_it_the_answers_change(
    name: str, words: str, module: nn.Module, input: Tensor, patches: list[Patch], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refused(name, module, input, words)
    for patch in patches:
        monkeypatch.setattr(*patch)
    if patches:
        assert not error() < WRONG


def test_folding_a_batch_norm_through_zeros_is_half_wrong_and_without_zeros_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 8, 6, 6)
    for padding, wrong in ((1, True), (0, False)):
        body = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=padding))
        outcomes, error = attempt("fold_batch_norm_forward", body, image)
        assert [bool(each.reason) for each in outcomes] == [wrong]
        with monkeypatch.context() as patched:
            patched.setattr(_affine, "_why_not", nothing)
            assert 0.2 < error() < 0.9 if wrong else error() < 1e-12


def test_a_batch_norm_without_a_shift_goes_through_zeros() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    model = load_model(nn.Sequential(norm, nn.Conv2d(4, 4, 3, padding=1)).eval(), {"input": IMAGE})
    assert norm.running_var is not None
    norm.running_var.uniform_(0.5, 2)
    traced = layered(capture(model))
    assert proof(load("fold_batch_norm_forward"), traced, RULES, model.example) < 1e-12
    assert [each.reason for each in load("fold_batch_norm_forward").apply(traced, RULES)] == [None]


class Masked(nn.Module):
    """Attention whose mask is given as a constant, or made from the input."""

    allowed: Tensor

    def __init__(self, allowed: Tensor, fill: float, live: bool = False) -> None:
        super().__init__()
        self.register_buffer("allowed", allowed)
        self.fill, self.live = fill, live

    def forward(self, input: Tensor) -> Tensor:
        logits = input @ input.mT
        allowed = self.allowed & (input[..., :1].mT > 0) if self.live else self.allowed
        mask = torch.zeros(logits.shape[-2:]).masked_fill(~allowed, self.fill)
        return (logits + mask).softmax(-1).nan_to_num(0.0) @ input


@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min])
def test_a_mask_that_leaves_nothing_in_a_row_stays(fill: float, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = torch.ones(5, 5, dtype=torch.bool).tril(-1)  # the first row of each has nothing
    error = refused("finite_masks", Masked(allowed, fill), TOKENS, "2 of 10 rows are masked as a whole")
    monkeypatch.setattr(finite_masks._Masked, "why_not", nothing)
    assert not error() < WRONG


def test_a_mask_that_depends_on_inputs_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Masked(torch.ones(5, 5, dtype=torch.bool), torch.finfo(torch.float32).min, live=True)
    dead = -TOKENS.abs()  # everything is masked
    error = refused("finite_masks", module, dead, "depends on the model's inputs")
    monkeypatch.setattr(finite_masks._Masked, "why_not", nothing)
    assert not error() < WRONG


def test_two_masks_that_together_leave_nothing_stay() -> None:
    ahead, behind = torch.ones(4, 4).triu(0).bool(), torch.ones(4, 4).tril(-1).bool()

    def compute(module: nn.Module, input: Tensor) -> Tensor:
        return (
            (input @ input.mT).masked_fill(ahead, -math.inf).masked_fill(behind, -math.inf).softmax(-1).nan_to_num(0.0)
        )

    refused("finite_masks", Of(compute), TOKENS[:1, :4], "4 of 4 rows are masked as a whole")


def test_a_filled_tensor_that_others_read_stays() -> None:
    later = torch.ones(4, 4).triu(1).bool()

    def compute(module: nn.Module, input: Tensor) -> tuple[Tensor, Tensor]:
        logits = (input @ input.mT).masked_fill(later, -math.inf)
        return logits.softmax(-1), logits.exp()

    refused("finite_masks", Of(compute), TOKENS[:, :4], "'exp'")


@pytest.mark.parametrize("meet", [lambda x: x.softmax(-1), lambda x: functional.layer_norm(x, x.shape[-1:])])
def test_channels_that_meet_are_not_filled_up(meet: Callable[[Tensor], Tensor]) -> None:
    module = Of(lambda m, x: m.two(meet(m.one(x))), one=nn.Linear(4, 6), two=nn.Linear(6, 2))
    refused("pad_channels", module, TOKENS, "6 channels")
    wide = functional.pad(TOKENS, (0, 12))
    assert float((meet(wide)[..., :4] - meet(TOKENS)).norm() / meet(TOKENS).norm()) > WRONG


def test_what_the_model_returns_is_not_filled_up() -> None:
    refused("pad_channels", nn.Sequential(nn.Linear(4, 6)), TOKENS, "6 channels: the model returns it")


def test_a_chain_that_would_cost_more_stays() -> None:
    narrow = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4))
    refused("merge_branches", narrow, TOKENS, "16 products for each position, two take 8")


def test_a_layer_between_two_that_another_op_reads_stays() -> None:
    module = Of(lambda m, x: m.two(y := m.one(x)) * y, one=nn.Linear(4, 4), two=nn.Linear(4, 4))
    refused("merge_branches", module, TOKENS, "reads what 'one' computes")


class Twice(nn.Module):
    """A body that is called once more on other values."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Any:
        return self.body(input) + self.body(input.flip(1))


class Peeked(nn.Module):
    """A body whose weights are also read by other ops."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Any:
        return self.body(input) * sum(each.sum() for each in self.body.parameters() if each.dim() > 1)


BODIES: dict[str, tuple[nn.Module, Tensor]] = {
    "fold_batch_norm": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), IMAGE),
    "fold_batch_norm_forward": (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), IMAGE),
    "fold_norm_affine": (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), TOKENS),
    "center_residual": (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), TOKENS),
    "rotate_residual": (
        nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6, elementwise_affine=False), nn.Linear(6, 2)),
        TOKENS,
    ),
    "equalize": (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), TOKENS),
    "smooth_outliers": (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), TOKENS),
    "pad_channels": (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), TOKENS),
    "space_to_depth_stem": (nn.Sequential(nn.Conv2d(4, 2, 2, stride=2)), IMAGE),
    "merge_branches": (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), TOKENS),
}


@pytest.mark.parametrize("name", BODIES)
def test_layers_that_are_called_twice_stay(name: str) -> None:
    body, input = BODIES[name]
    outcomes, _ = attempt(name, Twice(body), input)
    assert outcomes
    assert all("is called 2 times" in (each.reason or "") for each in outcomes)


@pytest.mark.parametrize("name", BODIES)
def test_weights_that_another_op_reads_stay(name: str) -> None:
    body, input = BODIES[name]
    outcomes, _ = attempt(name, Peeked(body), input)
    assert outcomes
    assert all("are also those of" in (each.reason or "") for each in outcomes)


@pytest.mark.parametrize("name", ["fold_batch_norm", "fold_norm_affine", "equalize", "center_residual"])
def test_changing_a_layer_that_is_called_twice_changes_the_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second call is not of the same pattern: the layer alone, without what the rewrite folds into it."""
    body, input = BODIES[name]
    assert isinstance(body, nn.Sequential)
    place = next(place for place, each in enumerate(body) if isinstance(each, nn.Linear | nn.Conv2d))
    again = Of(lambda m, x: (m.body(x), m.body[place](x)), body=body)
    error = refused(name, again, input, "is called 2 times")
    monkeypatch.setattr(Owners, "shared", nothing)
    assert not error() < WRONG


def test_an_embedding_tied_to_the_head_is_not_centred() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, input: Tensor) -> Any:
            return self.head(self.norm(self.embed(input)))

    tokens = torch.randint(0, 7, (2, 5))
    for name in ("center_residual", "fold_norm_affine"):
        refused(name, Tied(), tokens, "are also those of")
