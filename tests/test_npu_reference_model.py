"""The reference model: what it is made of, that it can be taught, and that no word sees a later one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.distill.architecture.pyramid import Pyramid
from edgekit.distill.scenes import scenes
from edgekit.graph import capture, op_counts
from edgekit.npu import reference_task
from edgekit.npu.gated_conv import GatedConv
from edgekit.npu.reference_model import HEADS, LAYERS, LENGTH, WORDS, Attention, ReferenceModel
from edgekit.npu.rules import npu_rules
from edgekit.source import load


@pytest.fixture(scope="module")
def model() -> ReferenceModel:
    torch.manual_seed(0)
    return ReferenceModel().eval()


def test_it_has_the_parts_of_autoneural(model: ReferenceModel) -> None:
    assert isinstance(model.tower, Pyramid)
    assert not any(isinstance(layer, nn.BatchNorm2d | nn.LayerNorm | nn.RMSNorm) for layer in model.connector)
    mixers = [layer.mixer for layer in model.decoder.layers]
    assert [type(mixer) for mixer in mixers].count(GatedConv) == LAYERS - 1
    assert [type(mixer) for mixer in mixers].count(Attention) == 1
    assert sum(parameter.numel() for parameter in model.parameters()) < 300_000


def test_every_op_is_one_that_htp_v68_has_a_rule_for_and_no_tensor_has_five_axes(model: ReferenceModel) -> None:
    program = capture(load(model, reference_task.example()))
    rules = npu_rules("qcom-htp-v68")
    assert [op for op in op_counts(program) if not rules.of_op(op)] == []
    assert op_counts(program)["softmax"] == HEADS
    values = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert max(value.dim() for value in values) <= 4


def test_every_width_between_layers_is_a_multiple_of_32(model: ReferenceModel) -> None:
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    odd = {path for path, layer in layers if layer.out_channels % 32 or layer.in_channels % 32}
    assert odd == {"tower.stem.conv", "head"}  # the image's colours and the words


@torch.no_grad()
def test_a_word_sees_the_image_and_the_words_before_it(model: ReferenceModel) -> None:
    given = reference_task.example()
    before = model(**given)["logits"]
    assert before.shape == (1, LENGTH, len(WORDS))
    for place in range(LENGTH):
        tokens = given["tokens"].clone()
        tokens[0, place] = (tokens[0, place] + 1) % len(WORDS)
        changed = (model(given["image"], tokens)["logits"] - before).abs().amax((0, 2)) > 0
        assert changed.tolist() == [later >= place for later in range(LENGTH)]
    assert ((model(given["image"].flip(3), given["tokens"])["logits"] - before).abs() > 0).any(2).all()


def test_answers_say_what_is_in_the_scene() -> None:
    found = reference_task.answered(60, seed=3)
    assert found.images.shape == (60, 3, 64, 64)
    assert found.images.min() >= -1
    assert found.images.max() <= 1
    words = [[WORDS[word] for word in row] for row in found.words.tolist()]
    assert [row[1] for row in words] == ["one", "two", "three"] * 20
    scene = scenes(1, 3 * 3, objects=1)[0]  # the first of them
    rows, columns = scene.masks[0].nonzero()
    where = ["top" if rows.mean() < 31.5 else "bottom", "left" if columns.mean() < 31.5 else "right"]
    assert words[0] == ["<start>", "one", *where]


def test_a_few_steps_teach_it_something_and_a_seed_gives_the_same_weights() -> None:
    seen: list[str] = []
    one = reference_task.trained(steps=12, progress=seen.append)
    losses = [float(line.rpartition(" ")[2]) for line in seen]
    assert losses[-1] < 0.7 * losses[0]
    assert not one.training
    other = reference_task.trained(steps=12)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_accuracy_counts_each_word_after_the_models_own() -> None:
    class Says(nn.Module):
        """Always one, top, left, and nothing sensible after any other word."""

        def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            after = {"<start>": "one", "one": "top", "top": "left"}
            logits = torch.zeros(1, LENGTH, len(WORDS))
            for place, token in enumerate(tokens[0].tolist()):
                logits[0, place, WORDS.index(after.get(WORDS[token], "<start>"))] = 1
            return {"logits": logits}

    found = reference_task.answered(30, seed=5)
    spoken = [[WORDS[word] for word in row] for row in found.words.tolist()]
    right = [sum(row[1 + i] == word for row in spoken) / 30 for i, word in enumerate(("one", "top", "left"))]
    assert reference_task.accuracy(Says(), found) == pytest.approx(right)


def test_what_is_saved_loads_and_answers_the_same(model: ReferenceModel, tmp_path: Path) -> None:
    reference_task.save(model, tmp_path / "made", count=4)
    again = load(f"{tmp_path}/made/model.pt2")
    sample = {name: tensor.numpy() for name, tensor in reference_task.example().items()}
    with torch.no_grad():
        right = model(**reference_task.example())["logits"]
    assert torch.equal(torch.from_numpy(again(sample)["logits"]), right)
