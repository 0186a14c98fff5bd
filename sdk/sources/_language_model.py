"""A causal language model of a Hugging Face folder: its decoder step, tokenizer, chat template and stop ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from edgekit.decoder import decoder_step
from edgekit.errors import InvalidInput
from edgekit.generation import CHAT_TEMPLATE, TOKENIZER, Generation
from edgekit.golden import GOLDEN_TOKENS
from edgekit.model import Loaded, LoadOptions
from edgekit.sources._folder import read_json
from edgekit.types import DynamicDim

CONTEXT = 512  # tokens, where nobody asks for more: the cache is read anew at every step
CHUNKS = (1, 32)  # tokens of one call: single ones while answering, these many while reading a prompt
AXIS = "tokens.1"


def load_language_model(folder: Path, module: nn.Module, options: LoadOptions) -> Loaded:
    """The folder's model as one step of decoding. Raises `InvalidInput` for files that cannot be followed."""
    config = read_json(folder / "config.json") or {}
    chunks = _chunks(options.dynamic)
    context = _context(options.context, config, chunks)
    step, example, vocabulary = decoder_step(module, context, chunks.maximum)
    template, special = _chat(folder)
    stops = _stop_ids(folder, config)
    assets = {CHAT_TEMPLATE: template.encode()} if template else {}
    if (folder / TOKENIZER).is_file():
        assets[TOKENIZER] = (folder / TOKENIZER).read_bytes()
    outside = [str(token) for token in stops if token >= vocabulary]
    generation = Generation(
        context=context,
        layers=(len(example) - 2) // 2,
        vocabulary=vocabulary,
        stop_ids=tuple(token for token in stops if token < vocabulary),
        special_tokens=special,
    )
    warnings = []
    if outside:
        warnings.append(f"stop ids {', '.join(outside)} are outside the {vocabulary} tokens: ignored")
    if not generation.stop_ids:
        warnings.append("no file of the folder names a stop id: answers end at --max-tokens only")
    if TOKENIZER not in assets:
        warnings.append(f"the folder has no {TOKENIZER}: the bundle takes token ids, not text")
    return Loaded(
        module=step, example=example, assets=assets, generation=generation, dynamic=(chunks,), warnings=tuple(warnings)
    )


def _chunks(given: tuple[DynamicDim, ...]) -> DynamicDim:
    """How many tokens one call takes, with 1 among them."""
    if not given:
        return DynamicDim(name=AXIS, minimum=CHUNKS[0], maximum=CHUNKS[-1], sizes=CHUNKS)
    if len(given) > 1 or given[0].name != AXIS or given[0].sizes[:1] != (1,):
        raise InvalidInput(
            f"--dynamic {', '.join(map(str, given))}: a language model has one dynamic size, the tokens of a call, "
            f"as a list that starts with 1: --dynamic {AXIS}=1,16,64"
        )
    return given[0]


def _context(asked: int | None, config: dict[str, Any], chunks: DynamicDim) -> int:
    """Places in the cache: what was asked for, else the default, never more than the model was trained with."""
    least, trained = max(2 * GOLDEN_TOKENS, 2 * chunks.maximum), config.get("max_position_embeddings")
    most = trained if isinstance(trained, int) and trained > 0 else None
    context = asked if asked is not None else min(CONTEXT, most or CONTEXT)
    if context < least or (most is not None and context > most):
        raise InvalidInput(
            f"a context of {context} tokens does not fit: chunks of up to {chunks.maximum} and the golden run need "
            f"{least}, and the model has {most or 'no stated number of'} positions"
        )
    return context


def _stop_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer, from both files that may name them."""
    found: set[int] = set()
    for name, content in (("generation_config.json", read_json(folder / "generation_config.json")), ("config", config)):
        value = (content or {}).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if bad := [token for token in ids if type(token) is not int or token < 0]:
            raise InvalidInput(
                f"'{folder / name}': eos_token_id must be a token id or a list of them, found {bad[0]!r}"
            )
        found.update(ids)
    return tuple(sorted(found))


def _chat(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template, and the special tokens that it may write."""
    path = folder / "tokenizer_config.json"
    stored = read_json(path) or {}
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = stored.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
        elif token is not None:
            raise InvalidInput(f"'{path}': '{name}' must be a string, not {token!r}")
    alone = folder / CHAT_TEMPLATE
    template = _text(alone) if alone.is_file() else stored.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise InvalidInput(f"'{path}': 'chat_template' must be a string, not {type(template).__name__}")
    return template, special


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"'{path}' is not UTF-8: {error}") from error
