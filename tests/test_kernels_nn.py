"""Models with lossless weights: the same outputs, and memory that pays for what is in it once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import CorruptWeights, InvalidInput, UnknownName
from edgekit.lossless import compress_weights

torch = pytest.importorskip("torch", reason="torch is not installed")
triton = pytest.importorskip("triton", reason="triton is not installed")
save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
nn = torch.nn

from kernel_devices import interpreted, on_all, on_gpu  # noqa: E402

from edgekit.kernels.nn import (  # noqa: E402
    LosslessEmbedding,
    LosslessLinear,
    load_lossless,
    resident_bytes,
    without_weights,
)
from edgekit.kernels.nn.bench import Decoder, Sizes, decode_speed  # noqa: E402

IDS = [[3, 50, 0], [7, 7, 63]]


class Scaled(nn.Embedding):
    """Does more than look up, as Gemma's does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(ids)


class Plain(nn.Module):
    """Linear layers with and without bias, a table that is used twice, and layers that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 128, padding_idx=0)
        self.scaled = Scaled(64, 128)
        self.body = nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 128, bias=False), nn.LayerNorm(128))
        self.tiny = nn.Linear(128, 8)
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("halves", torch.full((128,), 0.5, dtype=torch.bfloat16), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.halves * self.scaled(ids)
        return nn.functional.linear(self.body(x), self.table.weight) + self.tiny(x).sum()


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Plain().bfloat16().eval().requires_grad_(False)


def llama(**changes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(**{"vocab_size": 64, "hidden_size": 128, "intermediate_size": 128,
                                         "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                                         "initializer_range": 0.1, "dtype": torch.bfloat16, **changes})  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def saved_state(state: dict[str, torch.Tensor], path: Path, codec: str = "auto") -> Path:
    (path / "source").mkdir(parents=True)
    save_file({name: value.clone() for name, value in state.items()}, path / "source" / "model.safetensors")
    compress_weights(path / "source", path / "packed", codec)
    return path / "packed"


def saved(model: nn.Module, path: Path, codec: str = "auto") -> Path:
    """The model's weights, compressed."""
    if not hasattr(model, "save_pretrained"):
        return saved_state(model.state_dict(), path, codec)
    model.save_pretrained(path / "source", max_shard_size="100KB")
    assert len(list((path / "source").glob("*.safetensors"))) > 1
    compress_weights(path / "source", path / "packed", codec)
    return path / "packed"


def logits(model: nn.Module, device: str = "cpu") -> torch.Tensor:
    with torch.no_grad():
        out = model(torch.tensor(IDS, device=device))
    return getattr(out, "logits", out)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


def layers(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


@on_all
@pytest.mark.parametrize("resident", ["small", "bf16"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_transformers_model_answers_to_the_last_bit(tied: bool, resident: Any, device: str, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=tied)
    folder = saved(model, tmp_path)
    with without_weights():
        loaded = llama(tie_word_embeddings=tied)
    assert all(parameter.is_meta for parameter in loaded.parameters())
    load_lossless(loaded, folder, resident, device)
    assert same_bits(logits(loaded, device), logits(model.to(device), device))
    assert isinstance(loaded.lm_head, LosslessLinear) == (resident == "small")
    assert isinstance(loaded.model.embed_tokens, LosslessEmbedding) == (resident == "small")


@on_all
@pytest.mark.parametrize("codec", ["df11x", "df12", "df11"])
@pytest.mark.parametrize("resident", ["fast", "small"])
def test_any_codec_on_disk_becomes_what_is_resident(resident: Any, codec: str, device: str, tmp_path: Path) -> None:
    model = plain()
    loaded = load_lossless(plain(seed=1), saved(model, tmp_path, codec), resident, device)
    assert loaded.table.coded.codec == loaded.body[0].coded.codec == {"fast": "df12", "small": "df11x"}[resident]
    assert same_bits(loaded.table.weight, model.table.weight.to(device))
    assert same_bits(loaded.body[0].weight, model.body[0].weight.to(device))


@on_all
def test_fast_products_are_as_near_to_float64_as_dense_ones(device: str, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    loaded = load_lossless(llama(tie_word_embeddings=True), saved(model, tmp_path), "fast", device)
    fast, dense = logits(loaded, device).cpu().double(), logits(model).double()
    exact = logits(model.double())
    assert (fast - exact).norm() < 1.5 * (dense - exact).norm()
    assert not torch.equal(fast, exact)


@on_all
@pytest.mark.parametrize("resident", ["small", "bf16"])
def test_a_plain_model_answers_to_the_last_bit(resident: Any, device: str, tmp_path: Path) -> None:
    model = plain()
    loaded = load_lossless(plain(seed=1), saved(model, tmp_path), resident, device)
    assert same_bits(logits(loaded, device), logits(model.to(device), device))
    assert torch.equal(loaded.steps.cpu(), torch.arange(3))
    if resident == "bf16":
        assert layers(loaded) == layers(model)
        assert resident_bytes(loaded) == resident_bytes(model)
    else:
        changed = {name: kind for name, kind in layers(loaded).items() if layers(model).get(name, kind) != kind}
        assert changed == {"table": "LosslessEmbedding", "body.0": "LosslessLinear", "body.2": "LosslessLinear"}
        assert str(loaded.body[0]).startswith("LosslessLinear(\n  128, 128, df11x")


@on_all
@pytest.mark.parametrize("resident", ["small", "fast"])
def test_tied_weights_are_in_memory_once(resident: Any, device: str, tmp_path: Path) -> None:
    tied, untied = (llama(tie_word_embeddings=tied, vocab_size=256) for tied in (True, False))
    untied.lm_head.weight.copy_(untied.model.embed_tokens.weight)  # the same weights, but the model does not know
    for model in (tied, untied):
        folder = saved(model, tmp_path / str(model is tied))
        loaded = load_lossless(llama(tie_word_embeddings=model is tied, vocab_size=256), folder, resident, device)
        assert loaded.lm_head.coded is loaded.model.embed_tokens.coded
        assert resident_bytes(loaded) < 0.8 * resident_bytes(tied)


def test_bf16_keeps_tied_parameters_tied(tmp_path: Path) -> None:
    loaded = load_lossless(
        llama(tie_word_embeddings=True), saved(llama(tie_word_embeddings=True), tmp_path), "bf16", "cpu"
    )
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@on_all
@pytest.mark.parametrize("resident", ["small", "fast"])
def test_a_state_dict_goes_into_a_model_that_held_other_weights(resident: Any, device: str, tmp_path: Path) -> None:
    first = load_lossless(plain(), saved(plain(), tmp_path / "first"), resident, device)
    second = load_lossless(plain(), saved(plain(seed=1), tmp_path / "second"), resident, device)
    assert not same_bits(logits(first, device), logits(second, device))
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    assert "body.0.coded.sm" in state or "body.0.coded.lo" in state
    second.load_state_dict(state)
    assert same_bits(logits(first, device), logits(second, device))
    with pytest.raises(RuntimeError, match=r"body\.0\.coded"):
        second.load_state_dict({name: part for name, part in state.items() if not name.startswith("body.0.coded")})


@on_all
@pytest.mark.parametrize("resident", ["small", "fast"])
def test_a_compiled_model_answers_the_same(resident: Any, device: str, tmp_path: Path) -> None:
    loaded = load_lossless(plain(), saved(plain(), tmp_path), resident, device)
    compiled = torch.compile(loaded, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    expected = logits(loaded, device).float()
    assert torch.allclose(logits(compiled, device).float(), expected, atol=0.02 * float(expected.abs().max()))


@on_gpu
@pytest.mark.parametrize("resident", ["small", "fast"])
def test_a_graph_replays_the_model(resident: Any, device: str, tmp_path: Path) -> None:
    loaded = load_lossless(plain(), saved(plain(), tmp_path), resident, device)
    ids = torch.zeros(2, 3, dtype=torch.int64, device=device)
    with torch.no_grad():
        loaded(ids)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = loaded(ids)
    ids.copy_(torch.tensor(IDS))
    graph.replay()
    assert same_bits(out, logits(loaded, device))


@interpreted
def test_gpt2_has_layers_that_stay_dense(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=64, n_embd=128, n_layer=1, n_head=2, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).bfloat16().eval()
    model.save_pretrained(tmp_path / "source")
    compress_weights(tmp_path / "source", tmp_path / "packed")
    with without_weights():
        loaded = transformers.GPT2LMHeadModel(config).eval()
    load_lossless(loaded, tmp_path / "packed", "small", "cpu")
    assert same_bits(logits(loaded), logits(model))
    assert layers(loaded)["lm_head"] == "LosslessLinear"
    assert layers(loaded)["transformer.h.0.attn.c_attn"] == "Conv1D"


@interpreted
def test_weights_that_df12_does_not_hold_stay_dense(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = (rng.integers(100, 124, (128, 128)) << 7 | rng.integers(0, 128, (128, 128))).astype(np.int16)
    state = {"0.weight": torch.from_numpy(wide).view(torch.bfloat16)}
    loaded = nn.Sequential(nn.Linear(128, 128, bias=False))
    load_lossless(loaded, saved_state(state, tmp_path), "fast", "cpu")
    assert layers(loaded)["0"] == "Linear"
    assert same_bits(loaded[0].weight, state["0.weight"])
    load_lossless(loaded, tmp_path / "packed", "small", "cpu")
    assert layers(loaded)["0"] == "LosslessLinear"
    assert same_bits(loaded[0].weight, state["0.weight"])


@interpreted
def test_a_layer_tied_to_one_that_does_more_stays_dense(tmp_path: Path) -> None:
    model = nn.Sequential(Scaled(64, 128), nn.Linear(128, 64, bias=False)).bfloat16()
    model[1].weight = model[0].weight
    folder = saved_state({"0.weight": model[0].weight}, tmp_path)
    expected = logits(model)
    load_lossless(model, folder, "small", "cpu")
    assert model[1].weight is model[0].weight
    assert same_bits(logits(model), expected)


@interpreted
def test_a_model_that_is_one_layer_stays_dense(tmp_path: Path) -> None:
    state = nn.Linear(128, 128).bfloat16().state_dict()
    loaded = load_lossless(nn.Linear(128, 128), saved_state(state, tmp_path), "small", "cpu")
    assert same_bits(loaded.weight, state["weight"])


@on_all
@pytest.mark.parametrize("resident", ["small", "fast"])
def test_a_model_that_could_learn_answers_too(resident: Any, device: str, tmp_path: Path) -> None:
    loaded = load_lossless(plain().requires_grad_(), saved(plain(), tmp_path), resident, device)
    assert loaded(torch.tensor(IDS, device=device)).requires_grad


@interpreted
def test_a_layer_with_two_paths_is_swapped_once(tmp_path: Path) -> None:
    def twice() -> nn.Module:
        shared = nn.Sequential(nn.Linear(128, 128))
        return nn.Sequential(shared, shared).bfloat16()

    loaded = load_lossless(twice(), saved_state(twice().state_dict(), tmp_path), "small", "cpu")
    assert loaded[0] is loaded[1]
    assert layers(loaded)["0.0"] == "LosslessLinear"


def test_a_folder_that_does_not_fit_is_refused_by_name_and_changes_nothing(tmp_path: Path) -> None:
    state = plain().state_dict()
    renamed = {("other.weight" if name == "tiny.weight" else name): value for name, value in state.items()}
    for index, (change, message) in enumerate(
        (
            (renamed, "it lacks 'tiny.weight', the model has no 'other.weight'"),
            (
                state | {"tiny.weight": torch.zeros(4, 128)},
                r"'tiny.weight' is F32\[4, 128\], not bfloat16\[8, 128]",
            ),
            (state | {"steps": state["steps"].float()}, r"'steps' is F32\[3\], not int64\[3\]"),
            ({}, "it lacks 'steps', .* and 5 more"),
        )
    ):
        folder = saved_state(change, tmp_path / str(index))
        model = plain(seed=1)
        with pytest.raises(InvalidInput, match=rf"packed' does not fit the model: {message}"):
            load_lossless(model, folder, "bf16", "cpu")
        assert same_bits(logits(model), logits(plain(seed=1)))


def test_ties_that_the_folder_does_not_have_are_refused(tmp_path: Path) -> None:
    folder = saved(llama(tie_word_embeddings=False), tmp_path)
    with pytest.raises(InvalidInput, match=r"the model ties '.*' and '.*', whose stored weights differ"):
        load_lossless(llama(tie_word_embeddings=True), folder, "bf16", "cpu")


def test_a_model_on_the_meta_device_is_told_how_to_keep_its_buffers(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path)
    with torch.device("meta"):
        model = llama()
    with pytest.raises(InvalidInput, match=r"the buffer 'model.rotary_emb.inv_freq' has no values .* without_weights"):
        load_lossless(model, folder, "bf16", "cpu")


def test_two_models_in_one_folder_are_refused(tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / "source" / part).mkdir(parents=True)
        save_file(plain().state_dict(), tmp_path / "source" / part / "model.safetensors")
    compress_weights(tmp_path / "source", tmp_path / "packed")
    with pytest.raises(InvalidInput, match=r"'unet/model.safetensors' and 'vae/model.safetensors' both hold"):
        load_lossless(plain(), tmp_path / "packed", "bf16", "cpu")


@interpreted
@pytest.mark.parametrize("resident", ["small", "fast", "bf16"])
def test_a_damaged_tensor_is_named(resident: Any, tmp_path: Path) -> None:
    folder = saved(plain(), tmp_path)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptWeights, match=r"tensor '.*' of '.*model.safetensors'"):
        load_lossless(plain(), folder, resident, "cpu")


def test_arguments_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="no resident form is called 'tiny'"):
        load_lossless(plain(), tmp_path, "tiny", "cpu")
    with pytest.raises(InvalidInput, match=r"has no lossless.json"):
        load_lossless(plain(), tmp_path, "bf16", "cpu")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(InvalidInput, match=r"the weights are on 'cpu', .*; resident='bf16' works on any device"):
        load_lossless(plain(), tmp_path, "fast", "cpu")


TOY = Sizes(layers=1, hidden=128, inner=128, heads=4, kv_heads=2, vocabulary=256, context=128)


@on_all
def test_the_benchmark_s_decoders_agree(device: str) -> None:
    decoders = [Decoder(resident, TOY, torch.device(device)) for resident in ("bf16", "small", "fast")]
    for _ in range(2):
        for decoder in decoders:
            with torch.no_grad():
                decoder.step()
    dense, small, fast = decoders
    assert int(dense.position) == 2
    assert dense.tokens.any()
    assert torch.equal(small.tokens, dense.tokens)
    assert same_bits(small.cache, dense.cache)
    assert torch.allclose(fast.cache[..., 0, :].float(), dense.cache[..., 0, :].float(), atol=0.05)
    assert resident_bytes(small.model) < resident_bytes(fast.model) < resident_bytes(dense.model)


@on_gpu
def test_the_benchmark_decodes_under_a_graph(device: str) -> None:
    dense, small = (decode_speed(resident, sizes=TOY) for resident in ("bf16", "small"))
    assert small.tokens == dense.tokens
    assert small.tokens_per_s > 0
    assert small.weights == dense.weights
    assert small.weight_bytes < dense.weight_bytes
