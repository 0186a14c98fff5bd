"""Models are named, loaded, checked and described the same way wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError, InvalidInput, UnknownName, UnsupportedModel
from edgekit.model import name_outputs, weights_sha256
from edgekit.source import load, parse_dynamic, parse_input, parse_source
from edgekit.types import DynamicDim, TensorSpec

MODELS = Path(__file__).with_name("models.py")
VECTOR = torch.linspace(-1, 1, 16)[None]


class Returns(nn.Module):
    """Whatever a function of one tensor returns."""

    def __init__(self, function: Callable[[Tensor], Any], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def module(factory: str) -> nn.Module:
    return load(f"{MODELS}:{factory}").module


@pytest.mark.parametrize(
    ("ref", "kind", "inner"),
    [
        ("zoo:minilm_l6", "zoo", "minilm_l6"),
        ("my/model.pt2", "pt2", "my/model.pt2"),
        ("my_file.py:make", "python", "my_file.py:make"),
        ("package.module:make", "python", "package.module:make"),
    ],
)
def test_each_form_of_reference_has_its_kind(ref: str, kind: str, inner: str) -> None:
    assert (parse_source(ref).kind, parse_source(ref).ref) == (kind, inner)


def test_a_folder_is_a_hugging_face_model(tmp_path: Path) -> None:
    assert parse_source(str(tmp_path)).kind == "huggingface"


def test_a_bare_zoo_name_is_answered_with_the_right_spelling() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'zoo:minilm_l6'"):
        parse_source("minilm_l6")


def test_a_misspelt_zoo_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'minilm_l66'.*Did you mean 'minilm_l6'.*efficientnet_lite0"):
        load("zoo:minilm_l66")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "pytorch_model.bin", "model.safetensors", "model.onnx"])
def test_a_file_of_weights_is_explained(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"'{name}' holds weights, not a model.*your_file.py:factory"):
        parse_source(name)


@pytest.mark.parametrize("ref", ["", "nothing", "my_file.py", "a\0b", "x" * 5000, "~/model"])
def test_nonsense_is_answered_with_all_forms(ref: str) -> None:
    with pytest.raises(UnknownName, match=r"zoo:NAME, file.py:factory.*Hugging Face folder or model.pt2"):
        parse_source(ref)


def test_an_input_is_parsed() -> None:
    assert parse_input("ids:int64:1x128") == TensorSpec(name="ids", dtype="int64", shape=(1, 128))


BAD_INPUTS = ["", "x", "x:float32", "x:float32:", "x:float:1", "x:float32:0x3", "x:float32:-1x3", "x:float32:1,3"]
BAD_INPUTS += ["x:float32:3:3", "2x:float32:1", "a b:float32:1", ":float32:1", "x:float32:1xbatch", "x:complex64:1"]


@pytest.mark.parametrize("text", BAD_INPUTS)
def test_a_bad_input_is_answered_with_the_form_and_the_dtypes(text: str) -> None:
    with pytest.raises(InvalidInput, match=rf"input '{text}' is not NAME:DTYPE:SHAPE.*bfloat16"):
        parse_input(text)


@pytest.mark.parametrize("shape", ["99999999x99999999", "9" * 30])
def test_an_input_that_no_memory_holds_is_refused(shape: str) -> None:
    with pytest.raises(EdgekitError, match=r"'?x'?"):
        load(module("mlp"), inputs=[f"x:float32:{shape}"])


def test_a_list_of_sizes_is_parsed_sorted_and_each_once() -> None:
    assert parse_dynamic("batch=8,1,4,8") == DynamicDim(name="batch", minimum=1, maximum=8, sizes=(1, 4, 8))
    assert str(parse_dynamic("batch=8,1,4")) == "batch=1,4,8"


@pytest.mark.parametrize("sizes", [(1, 4), (4, 8), (8, 4, 1), (1, 4, 4, 8), (0, 1, 8), (1, 9)])
def test_sizes_that_do_not_fit_the_limits_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs ascending sizes from its lowest to its highest"):
        DynamicDim(name="batch", minimum=1, maximum=8, sizes=sizes)


@pytest.mark.parametrize(("size", "fitting"), [(0, 1), (1, 1), (3, 1), (4, 4), (7, 4), (8, 8), (99, 8)])
def test_a_size_is_brought_down_to_the_next_that_is_allowed(size: int, fitting: int) -> None:
    dim = DynamicDim(name="batch", minimum=1, maximum=8, sizes=(1, 4, 8))
    assert dim.fitting(size) == fitting
    assert dim.allows(fitting)
    assert dim.allows(size) == (size == fitting)


def test_a_dynamic_size_is_parsed() -> None:
    assert parse_dynamic("ids.1=2:64") == DynamicDim(name="ids.1", minimum=2, maximum=64)


@pytest.mark.parametrize(
    "text", ["", "batch", "batch=", "batch=4", "batch=1-4", "batch=1:2:3", "batch=a:b", "batch=1.5:3", "=1:8"]
)
def test_a_bad_dynamic_size_is_answered_with_the_form(text: str) -> None:
    with pytest.raises(InvalidInput, match=rf"'{text}' is not NAME=LOW:HIGH or NAME=SIZE,SIZE, for example"):
        parse_dynamic(text)


@pytest.mark.parametrize("limits", ["8:1", "0:4", "-2:4", "3:3"])
def test_impossible_limits_are_refused(limits: str) -> None:
    with pytest.raises(InvalidInput, match="needs 1 <= low < high"):
        parse_dynamic(f"batch={limits}")


@pytest.mark.parametrize("example", [VECTOR, (VECTOR,), [VECTOR], {"x": VECTOR}])
def test_an_example_may_be_a_tensor_a_sequence_or_a_mapping(example: Any) -> None:
    model = load(module("mlp"), example)
    assert model.inputs == (TensorSpec(name="x", dtype="float32", shape=(1, 16)),)
    assert model.outputs == (TensorSpec(name="output", dtype="float32", shape=(1, 4)),)
    assert torch.equal(model.example["x"], VECTOR)
    assert (model.source.kind, model.name, model.warnings) == ("module", "Mlp", ())


def test_inputs_and_outputs_keep_names_order_and_dtypes() -> None:
    model = load(f"{MODELS}:two_inputs")
    assert [str(spec) for spec in model.inputs] == ["tokens: int64[1, 6]", "offset: float32[1, 8]"]
    assert [str(spec) for spec in model.outputs] == ["mean: float32[1, 8]", "mixed: float32[1, 8]"]
    assert (model.source.kind, model.name) == ("python", "two_inputs")


def test_declared_inputs_replace_the_example_and_are_the_same_each_time() -> None:
    first, second = (load(f"{MODELS}:mlp", inputs=["x:float32:3x16"]) for _ in range(2))
    assert first.inputs[0].shape == (3, 16)
    assert torch.equal(first.example["x"], second.example["x"])
    assert first.example["x"].std() > 0.5


def test_a_model_without_example_asks_for_one() -> None:
    with pytest.raises(InvalidInput, match=r"return \(module, example_inputs\), or add --input NAME:DTYPE:SHAPE"):
        load(f"{MODELS}:no_example")
    assert load(f"{MODELS}:no_example", inputs=["x:float32:1x16"]).outputs[0].shape == (1, 4)


def test_calling_a_model_equals_calling_its_module() -> None:
    model = load(f"{MODELS}:two_inputs")
    feeds = {"tokens": np.array([[1, 2, 3]]), "offset": np.ones((1, 8), np.float32)}
    expected = model.module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    actual = model(feeds)
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name].numpy()) for name in expected)


def test_tied_weights_are_counted_once() -> None:
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    tied[1].weight = tied[0].weight
    assert load(tied, torch.ones(1, 8)).weight_bytes == 4 * (64 + 8 + 8)


@pytest.mark.parametrize("part", ["whole", "child"])
def test_a_module_in_training_mode_is_switched_and_said_so(part: str) -> None:
    dropout = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 4)).eval()
    (dropout if part == "whole" else dropout[0]).train()
    model = load(dropout, VECTOR)
    assert not any(m.training for m in model.module.modules())
    assert "training mode" in model.warnings[0]
    assert "eval" in model.warnings[0]


def test_outputs_are_named_by_keys_and_positions() -> None:
    t = torch.zeros(1)
    assert list(name_outputs(t)) == ["output"]
    assert list(name_outputs((t, [t, None, t], None, {"a": t}))) == [
        "output_0",
        "output_1.0",
        "output_1.2",
        "output_3.a",
    ]
    assert list(name_outputs({"boxes": t, "past": (t, (t, t)), "none": None})) == [
        "boxes", "past.0", "past.1.0", "past.1.1"
    ]  # fmt: skip
    assert name_outputs(None) == {}


@pytest.mark.parametrize("outputs", [{"a": {"b": VECTOR}, "a.b": VECTOR}, {1: VECTOR, "1": VECTOR}])
def test_outputs_of_one_name_are_refused_instead_of_dropped(outputs: Any) -> None:
    with pytest.raises(UnsupportedModel, match="name"):
        name_outputs(outputs)


def hashed(name: str, tensor: Tensor, persistent: bool = True) -> str:
    holder = nn.Module()
    holder.register_buffer(name, tensor, persistent=persistent)
    return weights_sha256(holder)


def test_the_weights_hash_tells_name_dtype_shape_and_every_bit() -> None:
    zeros = torch.zeros(2, 3)
    flipped = zeros.clone()
    flipped[1, 2] = -0.0
    variants = [
        ("w", zeros), ("v", zeros), ("w", zeros.int()), ("w", zeros.reshape(3, 2)), ("w", flipped),
    ]  # fmt: skip
    assert len({hashed(name, tensor) for name, tensor in variants}) == len(variants)
    assert hashed("w", torch.arange(6.0).view(2, 3).t()) == hashed("w", torch.arange(6.0).view(2, 3).t().contiguous())


def test_the_weights_hash_covers_buffers_outside_the_state_dict() -> None:
    assert hashed("w", torch.zeros(2), persistent=False) != hashed("w", torch.ones(2), persistent=False)


def test_the_weights_hash_is_equal_across_loads() -> None:
    first, second = (load(f"{MODELS}:small_conv").source.sha256 for _ in range(2))
    assert first == second
    assert len(str(first)) == 64
    assert first != load(f"{MODELS}:mlp").source.sha256


def test_nan_in_weights_is_refused_with_tensor_and_count() -> None:
    with pytest.raises(UnsupportedModel, match=r"weight 'first.weight' holds NaN or Inf in 1 of 512 elements"):
        load(f"{MODELS}:with_nan")


@pytest.mark.parametrize("name", ["norm.running_var", "head.bias"])
def test_infinity_in_weights_and_buffers_is_refused(name: str) -> None:
    conv = module("small_conv")
    conv.state_dict()[name][:2] = torch.inf
    with pytest.raises(UnsupportedModel, match=rf"weight '{name}' holds NaN or Inf in 2 of 1"):
        load(conv, torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: torch.fft.fft(x), "output 'output' is torch.complex64"),
        (lambda x: {"mask": x / 0}, "output 'mask' is not finite"),
        (lambda x: x * torch.nan, "output 'output' is not finite"),
        (lambda x: None, "returns no tensor"),
        (lambda x: [], "returns no tensor"),
        (lambda x: "text", "returns a str; it must return tensors"),
        (lambda x: (x, 3), "returns a int; it must return tensors"),
        (lambda x: x.to(torch.float8_e4m3fn), "torch.float8_e4m3fn is not one that runtimes take.*float32"),
        (lambda x: x @ x, r"fails on its own example inputs \(x \(1, 16\)\): RuntimeError"),
        (lambda x: x.gone, "fails on its own example inputs.*AttributeError.*gone"),
    ],
)
def test_a_model_whose_answer_is_useless_is_refused(function: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        load(Returns(function), VECTOR)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bool, torch.uint8])
def test_outputs_of_any_numpy_type_come_back(dtype: torch.dtype) -> None:
    output = load(Returns(lambda x: x.to(dtype)), VECTOR)({"x": VECTOR.numpy()})["output"]
    assert np.array_equal(output, VECTOR.to(dtype).numpy())


def test_outputs_that_numpy_cannot_hold_are_refused_at_once() -> None:
    with pytest.raises(UnsupportedModel, match=r"output 'output' is .*bfloat16"):
        load(Returns(lambda x: x.bfloat16()), VECTOR)


def test_complex_weights_and_inputs_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"weight 'phase' is torch.complex64"):
        load(Returns(lambda x: x, phase=torch.zeros(2, dtype=torch.complex64)), VECTOR)
    with pytest.raises(UnsupportedModel, match=r"example input 'x' is torch.complex64; pass real and imaginary"):
        load(Returns(abs), VECTOR.to(torch.complex64))


def test_weights_that_were_never_filled_are_refused() -> None:
    with torch.device("meta"):
        hollow = nn.Linear(16, 4).eval()
    with pytest.raises(UnsupportedModel, match=r"'weight'.*meta"):
        load(hollow, VECTOR)


@pytest.mark.parametrize("example", [3, "text", np.zeros((4, 16)), [None], {"x": 1.0}, (3.0,)])
def test_an_example_that_is_no_tensor_is_refused(example: Any) -> None:
    with pytest.raises(EdgekitError, match="tensor"):
        load(module("mlp"), example)


def test_arguments_without_names_are_refused() -> None:
    class Variadic(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return args[0]

    with pytest.raises(UnsupportedModel, match=r"Variadic.forward names 0 argument.*example has 1.*no \*args"):
        load(Variadic().eval(), VECTOR)
    with pytest.raises(UnsupportedModel, match=r"Mlp.forward names 1 argument\(s\) and the example has 2"):
        load(module("mlp"), (VECTOR, VECTOR))
