"""Every value goes to JSON and back unchanged, cannot be altered, and refuses what does not belong in it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import msgspec
import msgspec.inspect as mi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import bundle, energy, measurement, parity, processing, report, session, toolchains, types
from edgekit.bundle import PlanRecord
from edgekit.errors import InvalidInput
from edgekit.generation import LEAST_CONTEXT, Generation, GoldenRun
from edgekit.types import DTYPES, Change, DynamicDim, ModelSource, TensorSpec, Value

MODULES = (bundle, energy, measurement, parity, processing, report, session, toolchains, types)
FEW = settings(deadline=None, max_examples=15)


def value_classes(module: ModuleType) -> list[type[Value]]:
    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Value)]
    return [c for c in found if c.__module__ == module.__name__ and not c.__name__.startswith("_")]


CLASSES = [c for module in MODULES if module is not types for c in value_classes(module)]
CLASSES += [TensorSpec, DynamicDim, ModelSource, Change]
LEAVES: dict[type[mi.Type], st.SearchStrategy[Any]] = {
    mi.NoneType: st.none(),
    mi.BoolType: st.booleans(),
    mi.IntType: st.integers(-(2**63), 2**63 - 1),
    mi.FloatType: st.floats(allow_nan=False, allow_infinity=False),
    mi.StrType: st.text(max_size=8),
    mi.AnyType: st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4) | st.lists(st.text(max_size=4)),
}


def values(kind: mi.Type) -> st.SearchStrategy[Any]:
    """Everything that a field of this declared type may hold."""
    match kind:
        case mi.StructType(cls=cls) if cls is DynamicDim:
            sizes = st.lists(st.integers(1, 2**40), min_size=2, max_size=2, unique=True).map(sorted)
            return sizes.map(lambda pair: DynamicDim(name="n", minimum=pair[0], maximum=pair[1]))
        case mi.StructType(cls=cls) if cls is Generation:
            ids = st.lists(st.integers(0, 1), max_size=2).map(tuple)
            golden = st.builds(
                GoldenRun,
                prompt=st.text(max_size=4),
                prompt_ids=st.just((0, 1)),
                ids=st.just((1,)),
                probabilities=st.floats(0, 1).map(lambda p: (p,)),
            )
            counts = st.integers(LEAST_CONTEXT, 2**40)
            return st.builds(
                Generation, context=counts, layers=counts, vocabulary=counts, stop_ids=ids, golden=st.none() | golden
            )
        case mi.StructType():
            return st.builds(kind.cls, **{field.name: values(field.type) for field in kind.fields})
        case mi.LiteralType():
            return st.sampled_from(kind.values)
        case mi.UnionType():
            return st.one_of(*map(values, kind.types))
        case mi.VarTupleType():
            return st.lists(values(kind.item_type), max_size=2).map(tuple)
        case mi.TupleType():
            return st.tuples(*map(values, kind.item_types))
        case mi.DictType():
            return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=2)
    return LEAVES[type(kind)]


def fields(cls: type[Value]) -> tuple[mi.Field, ...]:
    info = mi.type_info(cls)
    assert isinstance(info, mi.StructType)
    return info.fields


def wrong_for(field: mi.Field) -> object:
    kinds = field.type.types if isinstance(field.type, mi.UnionType) else (field.type,)
    return "text" if any(isinstance(kind, mi.FloatType) for kind in kinds) else 1.5


every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def test_the_classes_under_test_are_the_ones_that_bundles_hold() -> None:
    assert {"Manifest", "Parity", "Measurement", "Energy", "Artifact", "ImagePreprocess", "Report"} <= {
        cls.__name__ for cls in CLASSES
    }


@every_class
@FEW
@given(data=st.data())
def test_a_value_goes_to_json_and_back_unchanged(cls: type[Value], data: st.DataObject) -> None:
    value = data.draw(values(mi.type_info(cls)))
    again = cls.from_json(value.to_json())
    assert again == value
    assert type(again) is cls
    assert cls.from_json(value.to_json().encode()) == value
    assert msgspec.convert(msgspec.to_builtins(value), cls) == value


@every_class
@settings(FEW, max_examples=3)
@given(data=st.data())
def test_a_value_is_frozen(cls: type[Value], data: st.DataObject) -> None:
    value = data.draw(values(mi.type_info(cls)))
    for field in fields(cls):
        with pytest.raises(AttributeError):
            setattr(value, field.name, None)


@every_class
@settings(FEW, max_examples=3)
@given(data=st.data())
def test_an_unknown_field_is_refused_by_name(cls: type[Value], data: st.DataObject) -> None:
    stored = msgspec.to_builtins(data.draw(values(mi.type_info(cls)))) | {"colour": "red"}
    with pytest.raises(InvalidInput, match=rf"{cls.__name__}.*colour"):
        cls.from_json(msgspec.json.encode(stored))


@every_class
@settings(FEW, max_examples=3)
@given(data=st.data())
def test_a_field_of_the_wrong_type_is_refused_by_name(cls: type[Value], data: st.DataObject) -> None:
    stored = msgspec.to_builtins(data.draw(values(mi.type_info(cls))))
    for field in fields(cls):
        with pytest.raises(InvalidInput, match=rf"{cls.__name__}.*\$\.{field.name}"):
            cls.from_json(msgspec.json.encode(stored | {field.name: wrong_for(field)}))


@every_class
@settings(FEW, max_examples=3)
@given(data=st.data())
def test_a_missing_field_is_refused_by_name(cls: type[Value], data: st.DataObject) -> None:
    stored = msgspec.to_builtins(data.draw(values(mi.type_info(cls))))
    for field in (f for f in fields(cls) if f.required):
        with pytest.raises(InvalidInput, match=field.name):
            cls.from_json(msgspec.json.encode({k: v for k, v in stored.items() if k != field.name}))


@settings(deadline=None)
@given(text=st.text() | st.binary())
def test_text_that_is_no_value_is_refused_and_never_raises_anything_else(text: str | bytes) -> None:
    with pytest.raises(InvalidInput, match="TensorSpec"):
        TensorSpec.from_json(text)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidInput, match="TensorSpec"):
        TensorSpec.from_json('{"name": "\ud800", "dtype": "int8", "shape": []}')


def test_json_nested_too_deeply_is_refused() -> None:
    text = '{"device":"d","format":"onnx","precision":"fp32","passes":[{"a":' + "[" * 100_000
    with pytest.raises(InvalidInput, match="PlanRecord"):
        PlanRecord.from_json(text)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_reads_like_a_declaration(dtype: types.DType) -> None:
    assert str(TensorSpec(name="x", dtype=dtype, shape=(1, "batch", 3))) == f"x: {dtype}[1, batch, 3]"


@pytest.mark.parametrize(("low", "high"), [(l, h) for l in range(-1, 4) for h in range(-1, 4)])  # noqa: E741
def test_a_dynamic_dimension_needs_at_least_two_sizes_from_one_up(low: int, high: int) -> None:
    text = f'{{"name": "batch", "minimum": {low}, "maximum": {high}}}'
    if 1 <= low < high:
        assert DynamicDim.from_json(text) == DynamicDim(name="batch", minimum=low, maximum=high)
        return
    with pytest.raises(InvalidInput, match=f"batch={low}:{high} needs 1 <= low < high"):
        DynamicDim.from_json(text)
    with pytest.raises(ValueError, match="needs 1 <= low < high"):
        DynamicDim(name="batch", minimum=low, maximum=high)


@pytest.mark.parametrize(
    ("kind", "ref", "name"),
    [
        ("zoo", "efficientnet_lite0", "efficientnet_lite0"),
        ("python", "tests/models.py:my_model", "my_model"),
        ("python", "package.module:factory", "factory"),
        ("pt2", "out/model.pt2", "model"),
        ("huggingface", "models/MiniLM-L6", "MiniLM-L6"),
        ("huggingface", "models/MiniLM-L6/", "MiniLM-L6"),
        ("huggingface", "models/Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("huggingface", ".", "huggingface"),
    ],
)
def test_a_source_has_a_short_name_for_folders(kind: str, ref: str, name: str) -> None:
    assert ModelSource(kind=kind, ref=ref).name == name
