"""A traced model as a module again: same answers, same places, and edits that hold."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph import capture, module_path, op_counts, op_nodes, source_line
from edgekit.layered import LayeredModule, layered, shape_of
from edgekit.model import Model, name_outputs
from edgekit.source import load
from edgekit.types import DynamicDim

aten = torch.ops.aten


class Everything(nn.Module):
    """Every layer that holds weights, weights without a layer, in-place ops, two inputs and nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.turned, self.groups = nn.ConvTranspose2d(3, 4, 2), nn.GroupNorm(2, 4)
        self.linear, self.layer_norm = nn.Linear(4, 6, bias=False), nn.LayerNorm(6)
        self.words, self.attention = nn.Embedding(7, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.rms, self.line = nn.RMSNorm(6), nn.Conv1d(6, 6, 3, padding=1, groups=3)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.words.weight
        self.scale = nn.Parameter(torch.randn(6))
        self.norm.running_mean, self.norm.running_var = torch.randn(4), torch.rand(4) + 0.5

    def forward(self, pixels: Tensor, ids: Tensor) -> Any:
        image = self.act(self.norm(self.first(pixels))) + self.groups(self.turned(pixels))[:, :, :8, :8]
        image[:, 0] = 0
        tokens = self.layer_norm(self.linear(image.flatten(2).transpose(1, 2))) + self.words(ids) * self.scale
        tokens = self.rms(tokens + self.attention(tokens, tokens, tokens)[0])
        again = self.line(self.line(tokens.transpose(1, 2))).transpose(1, 2)
        return {"tokens": tokens, "rest": (again.sum(), torch.tensor(3.0) * again, self.head(again))}


def everything() -> Model:
    torch.manual_seed(0)
    example = {"pixels": torch.randn(1, 3, 8, 8), "ids": torch.randint(0, 7, (1, 64))}
    return load(Everything().eval(), example)


@pytest.fixture(scope="module")
def model() -> Model:
    return everything()


@pytest.fixture(scope="module")
def program(model: Model) -> ExportedProgram:
    return capture(model)


def answers(module: nn.Module, model: Model) -> dict[str, Tensor]:
    with torch.no_grad():
        return name_outputs(module(**model.example))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_answers_are_the_same_to_the_bit(model: Model, program: ExportedProgram) -> None:
    assert same(answers(layered(program), model), answers(model.module, model))


def test_layers_stand_at_their_own_paths_over_the_same_weights(model: Model, program: ExportedProgram) -> None:
    made = layered(program)
    for path in ("first", "norm", "turned", "groups", "linear", "layer_norm", "words", "rms", "line", "head"):
        assert type(made.get_submodule(path)) is type(model.module.get_submodule(path)), path
    assert made.get_parameter("first.weight") is model.module.get_parameter("first.weight")
    assert made.get_parameter("head.weight") is made.get_parameter("words.weight")
    assert isinstance(made.get_submodule("attention.in_proj"), nn.Linear)
    assert torch.equal(made.get_parameter("scale"), model.module.get_parameter("scale"))


def test_nothing_but_what_the_graph_reads_is_kept(model: Model, program: ExportedProgram) -> None:
    weights = {id(tensor) for tensor in model.module.state_dict(keep_vars=True).values()}
    extra = [name for name, tensor in layered(program).named_parameters() if id(tensor) not in weights]
    assert extra == []


def test_a_copy_stands_alone(model: Model, program: ExportedProgram) -> None:
    made = layered(program)
    other = copy.deepcopy(made)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.zero_()
    assert same(answers(made, model), answers(model.module, model))
    assert not same(answers(other, model), answers(model.module, model))


def test_tracing_it_again_keeps_module_and_line_of_every_op(model: Model, program: ExportedProgram) -> None:
    again = capture(replace(model, module=layered(program)))
    places = {module_path(node) for node in op_nodes(again.graph)}
    assert {"first", "norm", "turned", "linear", "attention", "line", "head"} <= places
    assert all((source_line(node) or "").startswith("test_layered.py:") for node in op_nodes(again.graph))
    assert same(answers(again.module(check_guards=False), model), answers(model.module, model))


def test_in_place_ops_and_copies_are_gone(model: Model, program: ExportedProgram) -> None:
    names = {str(node.target) for node in layered(program).graph.nodes}
    assert not [name for name in names if name.split(".")[1:2] and name.split(".")[1].endswith("_")]
    assert not {"aten.clone.default", "aten.view.default", "aten.dropout.default"} & names


def test_a_zoo_model_keeps_its_ops() -> None:
    model = load("zoo:minilm_l6")
    made = layered(capture(model))
    assert same(answers(made, model), answers(model.module, model))
    before, after = op_counts(capture(model)), op_counts(capture(replace(model, module=made)))
    for name in ("linear", "layer_norm", "embedding", "gelu", "softmax", "matmul"):
        assert before[name] == after[name] > 0, name


def test_a_dynamic_batch_stays_dynamic() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    model = load(body, torch.randn(1, 4), dynamic=[DynamicDim(name="batch", minimum=1, maximum=8)])
    made = replace(model, module=layered(capture(model)))
    again = layered(capture(made))
    for batch in (1, 5, 8):
        inputs = torch.randn(batch, 4)
        assert torch.equal(again(input=inputs), body(inputs))


def test_hooks_fire_on_its_layers(model: Model, program: ExportedProgram) -> None:
    made, seen = layered(program), list[tuple[int, ...]]()
    made.get_submodule("line").register_forward_hook(lambda layer, args, result: seen.append(tuple(result.shape)))
    answers(made, model)
    assert seen == [(1, 6, 64)] * 2


def relu(made: LayeredModule) -> Node:
    (found,) = (node for node in made.graph.nodes if node.target is aten.relu.default)
    assert isinstance(found, Node)
    return found


def test_an_inserted_op_has_a_shape_and_a_home(model: Model, program: ExportedProgram) -> None:
    made = layered(program)
    old = relu(made)
    new = made.op(aten.permute.default, old.args[0], (0, 2, 3, 1), at=old)
    assert shape_of(new) == (1, 8, 8, 4)
    assert module_path(new) == "act"
    assert source_line(new) == source_line(old)


def test_an_op_can_be_replaced_and_what_it_needed_goes(model: Model, program: ExportedProgram) -> None:
    made = layered(program)
    old = relu(made)
    pixels = next(node for node in made.graph.nodes if node.op == "placeholder")
    layer = nn.Conv2d(3, 4, 1)
    made.replace(old, made.call("fresh.conv", layer, pixels, at=old))
    assert made.get_submodule("fresh.conv") is layer
    assert not any(path in ("first", "norm") for path, _ in made.named_modules())
    made.graph.lint()
    assert answers(made, model).keys() == answers(model.module, model).keys()


def test_a_constant_can_be_stored(model: Model, program: ExportedProgram) -> None:
    made = layered(program)
    old = relu(made)
    offset = made.weight("act.offset", torch.full((4, 1, 1), 2.0), at=old)
    shifted = made.op(aten.add.Tensor, old.args[0], offset, at=old)
    made.replace(old, shifted)
    assert made.get_buffer("act.offset").shape == (4, 1, 1)
    assert not same(answers(made, model), answers(model.module, model))


def test_refresh_follows_changed_arguments(model: Model, program: ExportedProgram) -> None:
    made = layered(program)
    old = relu(made)
    source = old.args[0]
    assert isinstance(source, Node)
    half = made.op(aten.slice.Tensor, source, 3, 0, 8, at=old)
    half.args = (source, 3, 0, 4)
    made.refresh()
    assert shape_of(half) == (1, 4, 8, 4)


def test_a_layer_whose_weight_is_computed_stays_an_op() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.gain = nn.Parameter(torch.ones(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.body.weight * self.gain, self.body.bias)

    made = layered(capture(load(Scaled().eval(), torch.randn(2, 4))))
    assert [node.op for node in made.graph.nodes if "linear" in str(node.target)] == ["call_function"]


def test_two_layers_of_one_weight_do_not_meet() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.linear(self.words(ids), self.words.weight)

    model = load(Tied().eval(), torch.tensor([[1, 2]]))
    made = layered(capture(model))
    assert same(answers(made, model), answers(model.module, model))
    kinds = {type(made.layer_of(node)) for node in made.graph.nodes if node.op == "call_module"}
    assert kinds == {nn.Embedding, nn.Linear}
