"""Graphs are traced, counted and sized, dynamic sizes stay dynamic, and what has no static graph is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.errors import EdgekitError, InvalidInput, UnsupportedModel
from edgekit.graph import capture, op_counts, peak_activation_bytes
from edgekit.model import name_outputs
from edgekit.source import load

MODELS = Path(__file__).with_name("models.py")


class Chain(nn.Module):
    """A random program of a few ops whose tensors differ in size and live differently long."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.steps = [torch.randint(0, 4, (3,), generator=random).tolist() for _ in range(8)]

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, first, second in self.steps:
            a, b = values[-1 - first % len(values)], values[-1 - second % len(values)]
            if kind == 0:
                values.append(torch.relu(a))
            elif kind == 1:
                values.append(torch.cat([a, b]))
            elif kind == 2:
                values.append(a.to(torch.float64 if a.dtype == torch.float32 else torch.float32))
            else:
                values.append(a.sum(0, keepdim=True) * b)
        return values[-1]


def program(factory: str, **options: Any) -> ExportedProgram:
    return capture(load(f"{MODELS}:{factory}", **options))


@pytest.mark.parametrize("factory", ["mlp", "small_conv", "two_inputs"])
def test_a_traced_graph_answers_like_the_model(factory: str) -> None:
    model = load(f"{MODELS}:{factory}")
    traced = capture(model)
    assert tuple(traced.graph_signature.user_inputs) == tuple(spec.name for spec in model.inputs)
    actual, expected = traced.module()(**model.example), model.module(**model.example)
    got, want = name_outputs(actual), name_outputs(expected)
    assert got.keys() == want.keys()
    assert all(torch.allclose(got[name], want[name]) for name in want)


def test_ops_are_counted_by_name() -> None:
    assert op_counts(program("mlp")) == {"linear": 2, "relu": 1}
    counts = op_counts(program("small_conv"))
    assert (counts["conv2d"], counts["linear"], counts["batch_norm"], counts["clamp"]) == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [(torch.int64, torch.float32), (torch.bool, torch.int32), (torch.float32, torch.float64), (torch.int8, torch.int8)],
)
def test_parts_of_mixed_dtypes_are_cast_before_they_are_joined(first: torch.dtype, second: torch.dtype) -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat((x, y, x))

    example = {"x": torch.tensor([0, 1, 3]).to(first), "y": torch.tensor([-2, 5]).to(second)}
    traced = capture(load(Joined(), example))
    (joined,) = traced.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    assert {part.meta["val"].dtype for part in joined.args[0]} == {joined.meta["val"].dtype}
    assert op_counts(traced)["to"] == (first != second)
    actual, expected = traced.module()(**example), torch.cat((example["x"], example["y"], example["x"]))
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def test_a_branch_on_values_is_refused_with_its_line_and_the_way_out() -> None:
    line = 1 + next(i for i, text in enumerate(MODELS.read_text().splitlines()) if "if x.sum() > 0" in text)
    place = rf"models\.py:{line}: if x.sum\(\) > 0:"
    with pytest.raises(UnsupportedModel, match=rf"cannot trace 'branching'.*{place}") as error:
        program("branching")
    assert "torch.where" in str(error.value)
    assert "--dynamic" not in str(error.value)


def test_a_size_that_the_model_fixes_is_refused_with_advice() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] > 4 else x + 1

    with pytest.raises(UnsupportedModel, match=r"cannot trace 'Fixed'.*Try without --dynamic, or with wider limits"):
        capture(load(Fixed().eval(), torch.ones(3, 4), dynamic=["batch=2:9"]))


def test_the_peak_of_three_ops_is_the_hand_count() -> None:
    x, hidden, output = 16 * 4, 32 * 4, 4 * 4
    steps = [x, x + hidden, hidden + hidden, hidden + output]  # input, linear, relu, linear
    assert peak_activation_bytes(program("mlp")) == max(steps) == 256
    assert peak_activation_bytes(program("mlp", inputs=["x:float32:5x16"])) == 5 * 256


def test_the_peak_counts_a_tensor_kept_for_later() -> None:
    class Skip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.relu(torch.relu(x))) + x

    assert peak_activation_bytes(capture(load(Skip().eval(), torch.ones(1, 10)))) == 3 * 40


def test_the_peak_of_a_dynamic_model_is_that_of_its_example() -> None:
    assert peak_activation_bytes(program("mlp", dynamic=["batch=1:8"])) == 2 * 256


@pytest.mark.parametrize("seed", range(12))
def test_the_peak_equals_brute_force_liveness(seed: int) -> None:
    traced = capture(load(Chain(seed).eval(), torch.ones(2, 5)))
    nodes = list(traced.graph.nodes)
    values = {n: n.meta.get("val") for n in nodes if n.op != "output"}
    size = {n: v.numel() * v.element_size() for n, v in values.items() if isinstance(v, Tensor)}
    alive_at = [
        [n for n in nodes[: i + 1] if n in size and (n is at or any(u in n.users for u in nodes[i:]))]
        for i, at in enumerate(nodes)
    ]
    assert len(size) > 3
    assert peak_activation_bytes(traced) == max(sum(size[n] for n in alive) for alive in alive_at)


def test_a_dynamic_batch_names_axis_0_and_grows_the_example() -> None:
    model = load(f"{MODELS}:two_inputs", dynamic=["batch=1:8"])
    assert [spec.shape for spec in model.inputs] == [("batch", 6), ("batch", 8)]
    assert [spec.shape for spec in model.outputs] == [("batch", 8), ("batch", 8)]
    assert all(tensor.shape[0] == 2 for tensor in model.example.values())
    traced = capture(model).module()
    for batch in (1, 3, 8):
        outputs = traced(tokens=torch.zeros(batch, 6, dtype=torch.int64), offset=torch.zeros(batch, 8))
        assert outputs["mean"].shape == (batch, 8)


@pytest.mark.parametrize(("size", "named"), [("seq=1:16", "seq"), ("tokens.1=1:16", "tokens_1")])
def test_a_dynamic_sequence_names_axis_1_of_tokens_only(size: str, named: str) -> None:
    model = load(f"{MODELS}:two_inputs", dynamic=[size])
    assert [spec.shape for spec in model.inputs] == [(1, named), (1, 8)]
    assert [spec.shape for spec in model.outputs] == [(1, 8), (1, 8)]
    traced = capture(model).module()
    assert traced(tokens=torch.zeros(1, 11, dtype=torch.int64), offset=torch.zeros(1, 8))["mean"].shape == (1, 8)


@pytest.mark.parametrize(("size", "length"), [("seq=1:4", 4), ("seq=9:12", 12), ("seq=2:6", 6), ("seq=1:64", 6)])
def test_the_example_is_brought_within_the_limits(size: str, length: int) -> None:
    assert load(f"{MODELS}:two_inputs", dynamic=[size]).example["tokens"].shape == (1, length)


def test_several_dynamic_sizes_work_together() -> None:
    model = load(f"{MODELS}:two_inputs", dynamic=["batch=1:4", "seq=1:9"])
    assert [spec.shape for spec in model.inputs] == [("batch", "seq"), ("batch", 8)]
    assert len(capture(model).range_constraints) == 2


def test_an_output_size_that_happens_to_equal_a_dynamic_one_stays_fixed() -> None:
    inputs = ["tokens:int64:1x8", "offset:float32:1x8"]
    model = load(f"{MODELS}:two_inputs", inputs=inputs, dynamic=["tokens.1=1:16"])
    assert [spec.shape for spec in model.outputs] == [(1, 8), (1, 8)]


def test_an_output_that_keeps_the_sequence_is_named_on_the_right_axis() -> None:
    class Transposed(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(tokens, 6).transpose(1, 2).float()

    model = load(Transposed().eval(), torch.arange(6)[None], dynamic=["seq=1:12"])
    assert model.outputs[0].shape == (1, 6, "seq")


@pytest.mark.parametrize("name", ["width", "x", "x.2", "x.-1", "x.²", "y.0", "seq", ".0", "x.", "batch.0"])
def test_a_dynamic_size_that_fits_nothing_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"dynamic size '.*' fits no input: use batch, or INPUT.AXIS with one of x"):
        load(f"{MODELS}:mlp", dynamic=[f"{name}=1:4"])


def test_one_axis_with_two_sizes_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"batch"):
        load(f"{MODELS}:mlp", dynamic=["batch=1:4", "batch=2:9"])
    with pytest.raises(InvalidInput, match=r"x.0"):
        load(f"{MODELS}:mlp", dynamic=["batch=1:4", "x.0=2:9"])


def test_an_empty_example_cannot_be_made_dynamic() -> None:
    with pytest.raises(EdgekitError, match="x"):
        load(load(f"{MODELS}:mlp").module, torch.zeros(0, 16), dynamic=["batch=1:4"])
