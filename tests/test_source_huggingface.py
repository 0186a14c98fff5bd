"""Hugging Face folders: tiny random models saved by transformers itself, and folders that are broken or hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.errors import EdgekitError, InvalidInput, UnsupportedModel
from edgekit.graph import capture
from edgekit.processing import ClassLabels, ImagePreprocess, TextPreprocess
from edgekit.source import load

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

BERT = {"vocab_size": 40, "max_position_embeddings": 12}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IDS = {"input_ids": np.array([[5, 6, 7, 0]]), "attention_mask": np.array([[1, 1, 1, 0]])}


@pytest.fixture(autouse=True)
def quiet_saving() -> Any:
    log = transformers.utils.logging
    log.disable_progress_bar()
    yield
    log.enable_progress_bar()


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**TINY, **BERT)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    config = transformers.BertConfig(**TINY, **BERT, id2label={0: "no", 1: "maybe", 2: "yes"})
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    config = transformers.ViTConfig(**TINY, image_size=32, patch_size=16, id2label={0: "cat", 1: "dog"})
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def test_a_token_model_answers_like_transformers(bert: Path) -> None:
    model = load(str(bert))
    assert [str(spec) for spec in model.inputs] == ["input_ids: int64[1, 12]", "attention_mask: int64[1, 12]"]
    assert [str(s) for s in model.outputs] == ["last_hidden_state: float32[1, 12, 16]", "pooler_output: float32[1, 16]"]
    reference = transformers.BertModel.from_pretrained(bert).eval()
    with torch.no_grad():
        expected = reference(**{name: torch.from_numpy(array) for name, array in IDS.items()})
    actual = model(IDS)
    assert np.allclose(actual["last_hidden_state"], expected.last_hidden_state.numpy(), atol=1e-5)
    assert np.allclose(actual["pooler_output"], expected.pooler_output.numpy(), atol=1e-5)
    assert (model.preprocess, model.postprocess, model.assets) == (None, None, {})


def test_a_classifier_carries_its_labels_in_order(classifier: Path) -> None:
    model = load(str(classifier))
    assert model.postprocess == ClassLabels(output="logits", top=3)
    assert model.logits == "logits"
    assert model.assets["labels.txt"].decode().splitlines() == ["no", "maybe", "yes"]
    assert len({load(str(classifier)).source.sha256, model.source.sha256}) == 1


def test_the_tokenizer_is_carried_and_used(bert: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 1, "red": 5, "cube": 6}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(bert / "tokenizer.json"))
    model = load(str(bert))
    assert model.preprocess == TextPreprocess(length=12)
    assert model.assets["tokenizer.json"] == (bert / "tokenizer.json").read_bytes()
    assert model.preprocess("red cube", model.assets)["input_ids"].tolist() == [[5, 6] + [0] * 10]


@pytest.mark.parametrize("sizes", [["batch=1:4"], ["seq=1:12"], ["batch=1:4", "seq=2:12"]])
def test_a_token_model_is_traced_with_dynamic_sizes(bert: Path, sizes: list[str]) -> None:
    program = capture(load(str(bert), dynamic=sizes))
    assert len(program.range_constraints) == len(sizes)


@pytest.mark.parametrize("architecture", ["ConvNext", "MobileNetV2"])
def test_an_image_model_answers_like_transformers(tmp_path: Path, architecture: str) -> None:
    own: dict[str, Any] = {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}
    own = own if architecture == "ConvNext" else {"depth_multiplier": 0.35}
    config = getattr(transformers, f"{architecture}Config")(image_size=32, **own)
    auto = transformers.AutoModelForImageClassification
    auto.from_config(config).save_pretrained(tmp_path)
    model = load(str(tmp_path))
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = auto.from_pretrained(tmp_path).eval()(pixels).logits.numpy()
    assert np.allclose(model({"pixel_values": pixels.numpy()})["logits"], expected, atol=1e-5)
    assert str(model.inputs[0]) == "pixel_values: float32[1, 3, 32, 32]"
    assert model.inputs[0].layout == "NCHW"


SQUARE = {"height": 32, "width": 32}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VARIANTS = {
    "stretch": ("ViT", {"size": SQUARE, "resample": 2, **HALF}),
    "bicubic": ("ViT", {"size": SQUARE, "resample": 3, **IMAGENET}),
    "nearest": ("ViT", {"size": SQUARE, "resample": 0, **IMAGENET}),
    "lanczos": ("ViT", {"size": SQUARE, "resample": 1, **IMAGENET}),
    "raw": ("ViT", {"size": SQUARE, "do_normalize": False}),
    "rescaled": ("ViT", {"size": SQUARE, "rescale_factor": 1 / 127.5, **HALF}),
    "shorter side and crop": ("MobileNetV2", {"size": {"shortest_edge": 40}, "crop_size": SQUARE, **HALF}),
    "crop fraction": ("ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.8, **IMAGENET}),
}
INEXPRESSIBLE = {  # in the fields of ImagePreprocess
    "box": ("ViT", {"size": SQUARE, "resample": 4, **IMAGENET}),
    "stretch and crop": ("DeiT", {"size": {"height": 40, "width": 40}, "crop_size": SQUARE, **IMAGENET}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_photographs_are_prepared_like_transformers_does(vit: Path, variant: str) -> None:
    from PIL import Image

    name, options = VARIANTS[variant]
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**options)
    processor.save_pretrained(vit)
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    preprocess = load(str(vit)).preprocess
    assert isinstance(preprocess, ImagePreprocess)
    actual = preprocess(photo, {})["pixel_values"]
    assert np.allclose(actual, processor(Image.fromarray(photo))["pixel_values"][0], atol=0.02)


@pytest.mark.parametrize("variant", INEXPRESSIBLE)
def test_a_preparation_that_cannot_be_repeated_is_refused(vit: Path, variant: str) -> None:
    name, options = INEXPRESSIBLE[variant]
    getattr(transformers, f"{name}ImageProcessorPil")(**options).save_pretrained(vit)
    with pytest.raises(InvalidInput, match=r"preprocessor_config.json"):
        load(str(vit))


def test_the_fields_of_a_preprocessor_are_read(vit: Path) -> None:
    options = {"size": {"shortest_edge": 40}, "crop_size": SQUARE, "do_center_crop": True, "resample": 3, **IMAGENET}
    edit(vit / "preprocessor_config.json", **options)
    assert load(str(vit)).preprocess == ImagePreprocess(
        input="pixel_values", height=32, width=32, shorter_side=40, interpolation="bicubic",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    edit(vit / "preprocessor_config.json", size=32, do_center_crop=False, do_normalize=False, resample=2)
    assert load(str(vit)).preprocess == ImagePreprocess(input="pixel_values", height=32, width=32, resize="stretch")
    assert load(str(vit)).assets["labels.txt"] == b"cat\ndog"


def test_an_old_square_size_with_a_crop_is_the_shorter_side(vit: Path) -> None:
    edit(vit / "preprocessor_config.json", size=40, crop_size=32, do_center_crop=True, **HALF)
    preprocess = load(str(vit)).preprocess
    assert isinstance(preprocess, ImagePreprocess)
    assert (preprocess.height, preprocess.width, preprocess.shorter_side) == (32, 32, 40)


@pytest.mark.parametrize("broken", [False, True])
def test_a_load_prints_nothing_and_restores_the_logging(
    bert: Path, capfd: pytest.CaptureFixture[str], broken: bool
) -> None:
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_info()
    log.enable_progress_bar()
    if broken:
        edit(bert / "config.json", model_type="no-such-model")
    try:
        load(str(bert))
    except UnsupportedModel:
        assert broken
    finally:
        after = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity(before)
    assert after == (log.INFO, True)
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is no Hugging Face folder: it has no config.json"):
        load(str(tmp_path))


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_a_broken_config_is_refused(bert: Path, content: bytes) -> None:
    (bert / "config.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"config.json' (is not valid JSON|must hold a JSON object)"):
        load(str(bert))


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": {"0": "BertModel"}},
        {"architectures": 3},
        {"auto_map": ["evil"]},
        {"hidden_size": "wide"},
        {"hidden_size": -4},
        {"max_position_embeddings": "long"},
        {"id2label": {"first": "no"}},
        {"id2label": ["no", "yes"]},
        {"model_type": "no-such-model"},
        {"vocab_size": None},
    ],
)
def test_a_config_with_nonsense_in_it_is_refused(classifier: Path, change: dict[str, Any]) -> None:
    edit(classifier / "config.json", **change)
    with pytest.raises(EdgekitError, match=r"classifier"):
        load(str(classifier))


@pytest.mark.parametrize(
    "change",
    [{"size": "big"}, {"size": {"depth": 3}}, {"size": []}, {"size": {"height": 0, "width": 0}}, {"resample": [2]},
     {"image_mean": "grey"}, {"image_mean": [0.5]}, {"image_std": [0, 0, 0]}],
)  # fmt: skip
def test_a_preprocessor_with_nonsense_in_it_is_refused(vit: Path, change: dict[str, Any]) -> None:
    edit(vit / "preprocessor_config.json", **{"size": SQUARE, "do_normalize": True, **HALF, **change})
    with pytest.raises(EdgekitError, match=r"preprocessor|size"):
        load(str(vit))


def test_an_unknown_architecture_is_answered_with_the_known_endings(bert: Path) -> None:
    edit(bert / "config.json", architectures=["BertForPoetry"])
    with pytest.raises(UnsupportedModel, match=r"BertForPoetry.*ForImageClassification.*your_file.py:factory"):
        load(str(bert))


def test_a_model_of_neither_tokens_nor_images_is_refused(tmp_path: Path) -> None:
    config = transformers.ASTConfig(**TINY, max_length=32, num_mel_bins=16)  # a model of sound
    transformers.ASTModel(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=r"neither a token nor an image model.*your_file.py:factory"):
        load(str(tmp_path))


def test_a_folder_without_weights_is_refused(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"has a config but no \*.safetensors: copy the weights"):
        load(str(bert))


def test_pickled_weights_are_refused_with_the_way_out(bert: Path) -> None:
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match=r"pytorch_model.bin, a pickle that can run code.*save_pretrained\(\)"):
        load(str(bert))


@pytest.mark.parametrize("damage", ["empty", "header", "data", "random"])
def test_damaged_weights_are_refused(bert: Path, damage: str) -> None:
    weights = (bert / "model.safetensors").read_bytes()
    noise = np.random.default_rng(0).bytes(4096)
    damaged = {"empty": b"", "header": weights[:20], "data": weights[:-100], "random": noise}[damage]
    (bert / "model.safetensors").write_bytes(damaged)
    with pytest.raises(UnsupportedModel, match=r"cannot load '.*bert'.*header"):
        load(str(bert))


def test_a_missing_tensor_is_refused_instead_of_drawn_at_random(classifier: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(classifier / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, classifier / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"classifier.weight"):
        load(str(classifier))


def own_code(folder: Path, marker: Path) -> Path:
    folder.mkdir()
    (folder / "modeling_own.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\nimport torch\n"
        "from transformers import BertModel\nclass OwnModel(BertModel):\n    pass\n"
    )
    transformers.BertModel(transformers.BertConfig(**TINY, **BERT)).save_pretrained(folder)
    edit(folder / "config.json", architectures=["OwnModel"], auto_map={"AutoModel": "modeling_own.OwnModel"})
    return folder


def test_code_in_a_folder_runs_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transformers.dynamic_module_utils, transformers.utils.hub):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "cache"), raising=False)
    folder = own_code(tmp_path / "own", tmp_path / "marker")
    with pytest.raises(InvalidInput, match=r"modeling_own.OwnModel\); it was not run.*--trust-remote-code"):
        load(str(folder))
    assert not (tmp_path / "marker").exists()
    assert load(str(folder), trust_remote_code=True).outputs[0].name == "last_hidden_state"
    assert (tmp_path / "marker").read_text() == "ran"
