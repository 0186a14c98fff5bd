"""A local Hugging Face folder: `config.json` and safetensors.

The auto class comes from the config's architecture. No code in the folder runs unless `trust_remote_code` says so, and
nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import InvalidInput, ToolchainMissing, UnsupportedModel
from edgekit.model import Loaded, LoadOptions, with_names
from edgekit.processing import ClassLabels, ImagePreprocess, Postprocess, Preprocess, TextPreprocess
from edgekit.quiet import quiet
from edgekit.sources._folder import read_json
from edgekit.sources._language_model import load_language_model
from edgekit.sources._segment_anything import ARCHITECTURE as SEGMENT_ANYTHING
from edgekit.sources._segment_anything import load_segment_anything

ATTENTION = "eager"  # plain matmul and softmax: every exporter knows them
TOKENS = 128  # sequence length of token models, unless they take fewer
AUTO_CLASSES = {  # ending of the architecture's name -> transformers auto class
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSemanticSegmentation": "AutoModelForSemanticSegmentation",
    "ForObjectDetection": "AutoModelForObjectDetection",
    "ForDepthEstimation": "AutoModelForDepthEstimation",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "Model": "AutoModel",
}
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
RESAMPLE = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}  # PIL's numbers, as preprocessor configs store them


def load(ref: str, options: LoadOptions) -> Loaded:
    """Load the folder's model with its preprocessing, labels and tokenizer."""
    folder = Path(ref)
    config = _read_config(folder, options)
    _check_weights(folder)
    return _with_task(folder, config, _module(folder, config, options), options)


def load_untrained(ref: str, options: LoadOptions) -> Loaded:
    """The same from the config alone, with random weights."""
    folder = Path(ref)
    config = _read_config(folder, options)
    auto_class, trust = _auto_class(folder, config), options.trust_remote_code
    with _transformers(folder) as transformers:
        described = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        module: nn.Module = getattr(transformers, auto_class).from_config(
            described, dtype=torch.float32, attn_implementation=ATTENTION, trust_remote_code=trust
        )
    return _with_task(folder, config, module.eval(), options)


def _read_config(folder: Path, options: LoadOptions) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if config is None:
        raise InvalidInput(f"'{folder}' is no Hugging Face folder: it has no config.json")
    _check_config(folder / "config.json", config)
    if "auto_map" in config and not options.trust_remote_code:
        raise InvalidInput(
            f"'{folder}' brings its own Python code ({', '.join(map(str, config['auto_map'].values()))}); it was not "
            "run. Read it, and add --trust-remote-code if you trust it"
        )
    read_json(folder / "generation_config.json")  # transformers reads it too, and says less clearly what is wrong
    return config


def _with_task(folder: Path, config: dict[str, Any], module: nn.Module, options: LoadOptions) -> Loaded:
    """The model with what the folder says of its inputs and its answers."""
    if _architecture(config).endswith(LANGUAGE_MODELS):
        return load_language_model(folder, module, options)
    if _architecture(config) == SEGMENT_ANYTHING:
        described = (folder / "preprocessor_config.json").is_file()
        return load_segment_anything(module, _read_preprocess(folder, config) if described else None)
    task = _vision(folder, config) if _takes_images(folder, config) else _text(folder, config)
    preprocess, example, assets = task
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    postprocess: Postprocess | None = None
    if "Classification" in _architecture(config) and "Token" not in _architecture(config) and names:
        assets["labels.txt"] = "\n".join(names[index] for index in sorted(names)).encode()
        postprocess = ClassLabels(output="logits", top=min(5, len(names)))
    return Loaded(
        module=with_names(_Plain, tuple(example))(module).eval(),
        example=example,
        preprocess=preprocess,
        postprocess=postprocess,
        assets=assets,
    )


class _Plain(nn.Module):
    """A transformers model that takes named tensors and returns a dict of the tensors among its outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        result = self.model(**inputs, return_dict=True)
        return {name: value for name, value in result.items() if isinstance(value, Tensor)}


def pretrained(folder: Path, auto_class: str, **options: Any) -> nn.Module:
    """A transformers model from a local folder's safetensors, in float32, loaded without a word on the terminal."""
    with _transformers(folder) as transformers:
        model: nn.Module
        model, found = getattr(transformers, auto_class).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=ATTENTION,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(found["missing_keys"]):
        raise UnsupportedModel(
            f"'{folder}' has no weights for {len(missing)} tensors of {type(model).__name__}, which would be random: "
            f"{', '.join(missing[:3])}"
        )
    return model.eval()


@contextmanager
def _transformers(folder: Path) -> Iterator[Any]:
    """transformers, quiet; what it raises about the folder is an `UnsupportedModel`."""
    try:
        with quiet():  # it imports what else is installed, and that talks
            import transformers
    except ImportError as error:
        raise ToolchainMissing("Hugging Face folders need transformers: pip install 'edgekit[huggingface]'") from error
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    except Exception as error:  # transformers, safetensors and the folder's own code raise dozens of types
        raise UnsupportedModel(f"transformers {transformers.__version__} cannot load '{folder}': {error}") from error
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _module(folder: Path, config: dict[str, Any], options: LoadOptions) -> nn.Module:
    return pretrained(folder, _auto_class(folder, config), trust_remote_code=options.trust_remote_code)


def _auto_class(folder: Path, config: dict[str, Any]) -> str:
    """The transformers class that loads the config's architecture. Raises `UnsupportedModel` that lists the endings."""
    architecture = _architecture(config)
    auto_class = next((auto for ending, auto in AUTO_CLASSES.items() if architecture.endswith(ending)), None)
    if auto_class is None:
        raise UnsupportedModel(
            f"'{folder}' is a {architecture or 'model of unnamed architecture'}; folders are loaded for architectures "
            f"ending in {', '.join(AUTO_CLASSES)}. For another, write a factory: your_file.py:factory"
        )
    return auto_class


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Refuse fields of another type than the code below and transformers read."""
    for field, kind in (("architectures", list), ("auto_map", dict), ("id2label", dict)):
        if not isinstance(config.get(field) or kind(), kind):
            raise InvalidInput(f"'{path}': '{field}' must be a {kind.__name__}, not {config[field]!r}")
    if bad := [index for index in config.get("id2label") or {} if not str(index).isdecimal()]:
        raise InvalidInput(f"'{path}': 'id2label' must map numbers to labels, found '{bad[0]}'")


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    if pickled:
        raise InvalidInput(
            f"'{folder}' keeps its weights in {pickled[0]}, a pickle that can run code: load it where you trust it and "
            "save_pretrained() again, which writes safetensors"
        )
    raise InvalidInput(f"'{folder}' has a config but no *.safetensors: copy the weights into it too")


def _takes_images(folder: Path, config: dict[str, Any]) -> bool:
    return (folder / "preprocessor_config.json").is_file() or ("image_size" in config and "vocab_size" not in config)


def _vision(folder: Path, config: dict[str, Any]) -> tuple[Preprocess | None, dict[str, Tensor], dict[str, bytes]]:
    preprocess = _read_preprocess(folder, config)
    channels = config.get("num_channels", 3)
    example = {"pixel_values": torch.zeros(1, channels, preprocess.height, preprocess.width)}
    return (preprocess if channels == 3 else None), example, {}


def _read_preprocess(folder: Path, config: dict[str, Any]) -> ImagePreprocess:
    path = folder / "preprocessor_config.json"
    try:
        return _image_preprocess(read_json(path) or {}, config)
    except (InvalidInput, ValueError, TypeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise InvalidInput(f"'{path}' cannot be followed: {error}") from error


def _image_preprocess(stored: dict[str, Any], config: dict[str, Any]) -> ImagePreprocess:
    size = stored.get("size", config.get("image_size") or 224)
    crop = stored.get("crop_size", size) if stored.get("do_center_crop") else None
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size if crop else None
    if crop and not shorter and _size(crop) != _size(size):
        raise InvalidInput(f"it stretches to {size} and then crops; write a factory with your own preprocessing")
    longest = size.get("longest_edge") if isinstance(size, dict) else None
    square = {"height": longest, "width": longest}
    if longest and not (stored.get("do_pad") and stored.get("pad_size") == square):
        raise InvalidInput(f"it resizes to {size} and does not pad to a square of that; write a factory with your own")
    height, width = (longest, longest) if longest else _size(crop or size)
    if shorter and (part := stored.get("crop_pct")):  # ConvNeXt: a larger resize before the crop, none from 384 on
        shorter = int(shorter / part) if shorter < 384 else None
    if min(height, width) < 1:
        raise InvalidInput(f"its size is {height}x{width}")
    resample = stored.get("resample", 2)
    if resample not in list(RESAMPLE):
        raise InvalidInput(f"its resample is {resample!r}; known are {RESAMPLE}")
    scale = 255 * float(stored.get("rescale_factor", 1 / 255)) if stored.get("do_rescale", True) else 255.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if stored.get("do_normalize", bool(stored)):
        mean, std = (_three(stored.get(f"image_{name}") or [0.5] * 3) for name in ("mean", "std"))
    if not all(std):
        raise InvalidInput(f"its image_std is {std}")
    return ImagePreprocess(
        input="pixel_values",
        height=height,
        width=width,
        resize="longest_side" if longest else "shorter_side" if shorter else "stretch",
        shorter_side=shorter,
        interpolation=RESAMPLE[resample],  # type: ignore[arg-type]
        mean=_three([m / scale for m in mean]),
        std=_three([s / scale for s in std]),
    )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _text(folder: Path, config: dict[str, Any]) -> tuple[Preprocess | None, dict[str, Tensor], dict[str, bytes]]:
    if "vocab_size" not in config:
        raise InvalidInput(
            f"'{folder}' is neither a token nor an image model by its config: write a factory that returns the model "
            "and its example inputs, your_file.py:factory"
        )
    length = min(TOKENS, int(config.get("max_position_embeddings") or TOKENS))
    ids = torch.ones(1, length, dtype=torch.int64)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        return None, example, {}
    preprocess = TextPreprocess(length=length, pad_token_id=int(config.get("pad_token_id") or 0))
    return preprocess, example, {"tokenizer.json": tokenizer.read_bytes()}


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, dict):
        edge = value.get("shortest_edge")
        height, width = value.get("height", edge), value.get("width", edge)
        if height is None or width is None:
            raise InvalidInput(f"the preprocessor's size {value} gives neither height and width nor shortest_edge")
        return int(height), int(width)
    if isinstance(value, list | tuple):
        return int(value[0]), int(value[1])
    return int(value), int(value)


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])
