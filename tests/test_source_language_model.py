"""Folders with a language model, as people and attackers leave them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from language_models import save_folder

from edgekit import registry
from edgekit.errors import InvalidInput, ToolchainMissing
from edgekit.model import LoadOptions
from edgekit.source import ZOO, load
from edgekit.sources import zoo


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("llama") / "llama", num_hidden_layers=1)


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    for path in llama.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.unlink(missing_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_folder_says_what_its_files_say(folder: Path) -> None:
    model = load(str(folder))
    assert model.generation is not None
    assert (model.generation.context, model.generation.stop_ids) == (256, (1, 2))  # as many as it has positions
    assert [str(dim) for dim in model.dynamic] == ["tokens.1=1,32"]
    assert [str(spec) for spec in model.inputs] == [
        "tokens: int64[1, tokens_1]",
        "position: int64[1]",
        "key_0: float32[1, 2, 16, 256]",
        "value_0: float32[1, 2, 256, 16]",
    ]
    assert [spec.name for spec in model.outputs] == ["logits", "new_key_0", "new_value_0"]
    assert model.warnings == ()


@pytest.mark.parametrize("value", ["1", -1, True, 1.0, [1, None], [[1]], {"a": 1}, [1, -3]])
def test_stop_ids_that_are_none_are_refused(folder: Path, value: Any) -> None:
    write(folder / "generation_config.json", {"eos_token_id": value})
    with pytest.raises(InvalidInput, match=r"generation_config\.json.*eos_token_id must be a token id or a list"):
        load(str(folder))


def test_stop_ids_outside_of_the_vocabulary_are_left_out_with_a_warning(folder: Path) -> None:
    write(folder / "generation_config.json", {"eos_token_id": [5, 300, 10**9]})
    model = load(str(folder))
    assert model.generation is not None
    assert model.generation.stop_ids == (1, 5)  # 1 is the config's
    assert model.warnings == ("stop ids 300, 1000000000 are outside the 300 tokens: ignored",)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_files_that_are_no_json_object_are_refused_by_name(folder: Path, name: str, content: str) -> None:
    write(folder / name, content)
    with pytest.raises(InvalidInput, match=name):
        load(str(folder))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"bos_token": 1}, "'bos_token' must be a string, not 1"),
        ({"eos_token": ["a"]}, "'eos_token' must be a string"),
        ({"chat_template": 5}, "'chat_template' must be a string, not int"),
    ],
)
def test_a_tokenizer_config_of_wrong_types_is_refused(folder: Path, content: dict[str, Any], said: str) -> None:
    (folder / "chat_template.jinja").unlink()
    write(folder / "tokenizer_config.json", content)
    with pytest.raises(InvalidInput, match=said):
        load(str(folder))


def test_a_template_may_lie_in_the_tokenizer_config_alone_or_among_others(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    for stored in ("hello", [{"name": "tool", "template": "x"}, {"name": "default", "template": "hello"}]):
        write(folder / "tokenizer_config.json", {"chat_template": stored})
        assert load(str(folder)).assets["chat_template.jinja"] == b"hello"


def test_missing_tokenizer_and_stop_ids_are_warnings(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    write(folder / "generation_config.json", {})
    write(folder / "config.json", json.loads((folder / "config.json").read_text()) | {"eos_token_id": None})
    warnings = load(str(folder)).warnings
    assert any("answers end at --max-tokens only" in w for w in warnings)
    assert any("takes token ids, not text" in w for w in warnings)


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        (["batch=1:4"], "a language model has one dynamic size, the tokens of a call"),
        (["tokens.1=1:32"], r"as a list that starts with 1: --dynamic tokens\.1=1,16,64"),
        (["tokens.1=2,32"], "a list that starts with 1"),
        (["tokens.1=1,8", "batch=1,2"], "a list that starts with 1"),
    ],
)
def test_other_dynamic_sizes_are_refused(folder: Path, dynamic: list[str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        load(str(folder), dynamic=dynamic)


@pytest.mark.parametrize(("context", "said"), [(63, "need 64"), (257, "has 256 positions"), (0, "does not fit")])
def test_a_context_that_does_not_fit_is_refused(folder: Path, context: int, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        load(str(folder), context=context)


def test_a_context_is_for_language_models(folder: Path) -> None:
    models = Path(__file__).parent / "models.py"
    with pytest.raises(InvalidInput, match=r"--context 64 is for folders with a language model, and .* is no language"):
        load(f"{models}:mlp", context=64)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "executorch", "tflite"])
def test_the_real_270m_model_answers_as_pytorch_does(target: str, tmp_path: Path) -> None:
    """Its weights are under terms that are no open-source licence: only where somebody installed them on purpose."""
    from edgekit.decoding import generate
    from edgekit.drafting import ExportOptions
    from edgekit.pipeline import export

    try:
        model = load("zoo:gemma3_270m")
    except ToolchainMissing as error:
        pytest.skip(str(error))
    assert "terms of use" in model.warnings[0]
    options = ExportOptions(format=target, precision="fp32", measure=False)
    bundle = export(model, "raspberrypi5", tmp_path / "out", options)
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.golden_run is not None
    assert bundle.manifest.parity.golden_run.agreeing == 32
    reply = generate(bundle, "Water boils at", max_tokens=8)
    assert "100 degrees" in "".join(reply)


@pytest.mark.parametrize("name", registry.names(ZOO))
def test_what_the_user_says_about_loading_reaches_every_zoo_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, given = registry.load(ZOO, name), LoadOptions(context=96)
    assert list(inspect.signature(entry.load).parameters) == ["options"]
    monkeypatch.setattr(entry, "load", lambda options: options)
    assert zoo.load(name, given) is given  # type: ignore[comparison-overlap]
