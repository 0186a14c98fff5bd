"""Bundles with a language model, from a folder to text on the terminal, in every format that is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from language_models import VOCABULARY, causal_model, save_folder

from edgekit import decoding, registry
from edgekit.bundle import MANIFEST, Bundle
from edgekit.cli.app import run
from edgekit.decoding import Decoder, generate, replay
from edgekit.drafting import ExportOptions
from edgekit.errors import BundleCorrupt, InvalidInput
from edgekit.generation import Sampling
from edgekit.inference import open_session
from edgekit.parity import TOLERANCES
from edgekit.pipeline import export
from edgekit.planning import EXPORTERS
from edgekit.session import Session
from edgekit.source import load
from edgekit.types import DynamicDim, TensorSpec
from edgekit.verification import verify

PROMPT = "The quick brown fox"
CHANGES = {"tie_word_embeddings": True, "num_hidden_layers": 1}
FORMATS = {"onnx": "onnx", "executorch": "executorch", "tflite": "litert_torch"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("llama") / "llama", **CHANGES)


@pytest.fixture(scope="module")
def onnx_bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(folder, tmp_path_factory.mktemp("onnx") / "out", "onnx", "fp32")


@pytest.fixture(scope="module", params=FORMATS)
def bundle(
    request: pytest.FixtureRequest, folder: Path, onnx_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    toolchain = FORMATS[request.param]
    pytest.importorskip(toolchain, reason=f"{toolchain} is not installed")
    if request.param not in registry.names(EXPORTERS):
        pytest.skip(f"there is no exporter {request.param}")
    if request.param == "onnx":
        return onnx_bundle
    return exported(folder, tmp_path_factory.mktemp(request.param) / "out", request.param, "fp32")


def exported(folder: Path, out: Path, format: str, precision: str) -> Bundle:
    model = load(str(folder), context=96, dynamic=["tokens.1=1,8"])
    return export(model, "raspberrypi5", out, ExportOptions(format=format, precision=precision, measure=False))


def with_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, **changes))


def transformers_says(prompt_ids: list[int], count: int) -> list[int]:
    model = causal_model("Llama", **CHANGES)
    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt_ids]), max_new_tokens=count, do_sample=False, eos_token_id=None)
    return ids[0, len(prompt_ids) :].tolist()  # type: ignore[no-any-return]


def test_the_manifest_says_how_to_make_text(bundle: Bundle) -> None:
    generation = bundle.manifest.generation
    assert generation is not None
    assert (generation.context, generation.layers, generation.vocabulary) == (96, 1, VOCABULARY)
    assert generation.stop_ids == (1, 2)
    assert generation.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert [dim.sizes for dim in bundle.manifest.dynamic] == [(1, 8)]
    assert {"tokenizer.json", "chat_template.jinja"} <= set(bundle.assets())


def test_the_golden_run_is_transformers_own(bundle: Bundle) -> None:
    assert bundle.manifest.generation is not None
    golden = bundle.manifest.generation.golden
    assert golden is not None
    assert golden.prompt == "The capital of France is"
    assert len(golden.ids) == len(golden.probabilities) == 32
    assert list(golden.ids) == transformers_says(list(golden.prompt_ids), 32)


def test_greedy_text_is_transformers_own(bundle: Bundle) -> None:
    reply = generate(bundle, PROMPT, max_tokens=24)
    assert "".join(reply) == reply.text
    expected = transformers_says(reply.prompt_ids, 24)
    stop = next((i for i, token in enumerate(expected) if token in (1, 2)), None)
    assert reply.ids == expected[:stop]
    assert reply.finish == ("length" if stop is None else "stop")
    assert len(reply.times_s) == len(reply.ids) + (stop is not None)
    assert sorted(reply.times_s) == reply.times_s


def test_verify_replays_every_token(bundle: Bundle) -> None:
    parity = verify(bundle)
    assert parity.ok
    assert parity.golden_run is not None
    assert (parity.golden_run.agreeing, parity.golden_run.judged, parity.golden_run.first_difference) == (32, 32, None)


def test_profile_times_prompt_and_answer(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", str(bundle.path), "--calls", "40", "--json", "-q"]) == 0
    times = json.loads(capfd.readouterr().out)["generation"]
    assert times["prompt_tokens"] == 48  # half of the context
    assert times["texts"] * 40 >= len(times["inter_token"]["times_s"]) >= 40
    assert 0 < times["inter_token"]["p50_s"] < times["time_to_first_token_s"]
    assert times["prefill_tokens_per_s"] == pytest.approx(48 / times["time_to_first_token_s"])
    assert times["decode_tokens_per_s"] == pytest.approx(1 / times["inter_token"]["mean_s"])


def test_a_golden_mismatch_names_the_token(onnx_bundle: Bundle) -> None:
    generation = onnx_bundle.manifest.generation
    assert generation is not None
    assert generation.golden is not None
    ids = list(generation.golden.ids)
    right, ids[20] = ids[20], (ids[20] + 1) % VOCABULARY
    golden = msgspec.structs.replace(generation.golden, ids=tuple(ids))
    parity = verify(with_manifest(onnx_bundle, generation=msgspec.structs.replace(generation, golden=golden)))
    assert not parity.ok
    assert parity.golden_run is not None
    assert f"token 20 is {right} " in str(parity.golden_run.first_difference)
    assert f"where PyTorch has {ids[20]} " in parity.misses[0]
    assert "of 32 tokens agree, the gate is 1.000" in parity.misses[0]


def test_a_quantised_bundle_is_judged_where_pytorch_is_sure(onnx_bundle: Bundle) -> None:
    generation = onnx_bundle.manifest.generation
    assert generation is not None
    assert generation.golden is not None
    ids = (*generation.golden.ids[:31], (generation.golden.ids[31] + 1) % VOCABULARY)
    for chance, ok in ((0.9, False), (0.3, True)):
        sure = (*[0.9] * 10, *[0.3] * 21, chance)
        golden = msgspec.structs.replace(generation.golden, ids=ids, probabilities=sure)
        changed = with_manifest(onnx_bundle, generation=msgspec.structs.replace(generation, golden=golden))
        tolerance = TOLERANCES["int8-dynamic"]
        with open_session(changed) as session:
            found = replay(session, changed, tolerance)
        assert found is not None
        assert (found.agreeing, found.judged) == (31, 10 + (chance > 0.4))
        assert (found.miss(tolerance) is None) == ok


def test_run_streams_text_and_json_has_it_whole(onnx_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(onnx_bundle.path), "--prompt", PROMPT, "--max-tokens", "12"]
    assert run(arguments) == 0
    said = capfd.readouterr()
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert said.out == document["text"] + "\n"
    assert f"[{len(document['ids'])} tokens, {document['finish']}; the first after" in said.err
    assert document["sampling"] == {"temperature": 0.0, "top_p": 1.0, "seed": 0}


def test_a_seed_repeats_a_drawn_text_and_another_does_not(onnx_bundle: Bundle) -> None:
    def drawn(seed: int) -> list[int]:
        reply = generate(onnx_bundle, PROMPT, max_tokens=20, sampling=Sampling(temperature=2.0, top_p=0.95, seed=seed))
        list(reply)
        return reply.ids

    assert drawn(3) == drawn(3) != drawn(4)


def test_stop_ids_end_an_answer_and_are_not_shown(onnx_bundle: Bundle) -> None:
    generation = onnx_bundle.manifest.generation
    lively = Sampling(temperature=3.0)  # greedy answers of a random model soon repeat
    free = generate(onnx_bundle, PROMPT, max_tokens=8, sampling=lively)
    list(free)
    stop = next(token for i, token in enumerate(free.ids) if i >= 3 and token not in free.ids[:i])
    stopping = msgspec.structs.replace(generation, stop_ids=(stop,))  # type: ignore[type-var]
    reply = generate(with_manifest(onnx_bundle, generation=stopping), PROMPT, max_tokens=8, sampling=lively)
    list(reply)
    assert reply.finish == "stop"
    assert reply.ids == free.ids[: free.ids.index(stop)]


def test_an_answer_ends_where_the_cache_does(onnx_bundle: Bundle) -> None:
    reply = generate(onnx_bundle, PROMPT * 3, max_tokens=500)
    list(reply)
    assert reply.finish in ("context", "stop")
    assert reply.finish == "stop" or reply.decoder.position == 96


def test_chat_writes_the_prompt_of_the_template(onnx_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(onnx_bundle.path), "--prompt", "hi", "--chat", "--max-tokens", "2", "--json"]
    assert run(arguments) == 0
    from edgekit.generation import tokenizer_of

    tokenizer = tokenizer_of(onnx_bundle.assets())
    ids = json.loads(capfd.readouterr().out)["prompt_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>[user]hi\n[assistant]"
    assert ids[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "run takes --input FILE_OR_TEXT, or --prompt TEXT for a language model, and one of the two"),
        (["--prompt", "a", "--input", "b"], "and one of the two"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be 1 or more"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "word " * 200], "this bundle's cache holds 96: shorten it, or export again with --context"),
        (["--prompt", "a", "--top-p", "2"], "cannot be sampled with"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    onnx_bundle: Bundle, arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", str(onnx_bundle.path), *arguments]) == 2
    assert said in capfd.readouterr().err


def test_a_bundle_that_makes_no_text_says_so(small_conv_bundle: Bundle) -> None:
    with pytest.raises(InvalidInput, match="is no language model: run it with --input instead of --prompt"):
        generate(small_conv_bundle, "a")


def test_int8_keeps_the_answers_and_quantises_the_output_layer(folder: Path, tmp_path: Path) -> None:
    bundle = exported(folder, tmp_path / "out", "onnx", "int8-dynamic")
    assert bundle.manifest.precision.quantized_ops == 1 + 7 + 1  # the lookup, seven products in the layer, the last one
    assert bundle.manifest.precision.float_ops == 0
    parity = bundle.manifest.parity
    assert parity is not None
    assert parity.golden_run is not None
    assert parity.golden_run.agreeing >= 28
    table = VOCABULARY * 64  # once: the lookup reads the output layer's columns
    assert table < bundle.manifest.precision.weight_bytes["int8"] < 2 * table + 7 * 64 * 96


def test_a_damaged_manifest_is_refused_by_name(onnx_bundle: Bundle, tmp_path: Path) -> None:
    text = json.loads((onnx_bundle.path / MANIFEST).read_text())
    text["generation"]["context"] = "many"
    (tmp_path / MANIFEST).write_text(json.dumps(text))
    with pytest.raises(InvalidInput, match=r"not a valid manifest.*generation\.context"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dynamic": ()}, "needs one list of sizes, the tokens of a call, from 1"),
        (
            {"dynamic": (DynamicDim(name="tokens.1", minimum=1, maximum=97, sizes=(1, 97)),)},
            "to at most its context of 96",
        ),
        ({"key_0": TensorSpec(name="key_0", dtype="float32", shape=(1, 2, 10**15, 96))}, "has caches of .* GB"),
        (
            {"key_0": TensorSpec(name="key_0", dtype="float32", shape=(1, 2, "tokens_1", 96))},
            "is no cache of 96 places",
        ),
        ({"value_0": TensorSpec(name="value_0", dtype="int8", shape=(1, 2, 96, 16))}, "is no cache of 96 places"),
        ({"value_0": TensorSpec(name="value_1", dtype="float32", shape=(1, 2, 96, 16))}, "not a key and a value of"),
        ({"position": TensorSpec(name="position", dtype="int32", shape=(1,))}, "other inputs than tokens, position"),
        ({"new_key_0": TensorSpec(name="other", dtype="float32", shape=(1,))}, "has the output new_key_0 as None"),
        ({"logits": TensorSpec(name="logits", dtype="float32", shape=(1, 7))}, r"output logits as \(1, 7\), not as"),
    ],
)
def test_a_manifest_that_contradicts_its_decoder_step_is_refused(
    onnx_bundle: Bundle, change: dict[str, Any], said: str
) -> None:
    manifest = onnx_bundle.manifest
    changes = {"dynamic": change.get("dynamic", manifest.dynamic)}
    for side in ("inputs", "outputs"):
        changes[side] = tuple(change.get(spec.name, spec) for spec in getattr(manifest, side))
    with open_session(onnx_bundle) as session, pytest.raises(BundleCorrupt, match=said):
        Decoder.of(with_manifest(onnx_bundle, **changes), session)


def test_verify_and_profile_refuse_such_a_bundle_in_one_sentence(
    onnx_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(onnx_bundle.path, tmp_path / "broken")
    limits = (DynamicDim(name="tokens.1", minimum=1, maximum=8),)
    (broken / MANIFEST).write_text(with_manifest(onnx_bundle, dynamic=limits).manifest.to_json())
    for verb in ("verify", "profile"):
        assert run([verb, str(broken)]) == 2
        said = capfd.readouterr().err
        assert "cannot make text: its manifest needs one list of sizes" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("context", 2, "needs a context of 4 tokens"),
        ("layers", 0, "a layer"),
        ("stop_ids", [VOCABULARY], "outside its vocabulary"),
    ],
)
def test_counts_that_no_generation_has_are_refused(
    onnx_bundle: Bundle, tmp_path: Path, field: str, value: Any, said: str
) -> None:
    document = json.loads((onnx_bundle.path / MANIFEST).read_text())
    document["generation"][field] = value
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(BundleCorrupt, match=said):
        Bundle.open(tmp_path)


def test_a_session_of_its_own_is_closed_when_the_reply_ends_or_is_dropped(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Session] = []

    def noted(bundle: Bundle, *, threads: int) -> Session:
        opened.append(open_session(bundle, threads=threads))
        return opened[-1]

    monkeypatch.setattr(decoding, "open_session", noted)
    reply = generate(onnx_bundle, PROMPT, max_tokens=3)
    assert list(reply)
    dropped = iter(generate(onnx_bundle, PROMPT, max_tokens=20))
    next(dropped)
    del dropped
    for session in opened:
        with pytest.raises(InvalidInput, match="session is closed"):
            session.run({})
    with pytest.raises(InvalidInput, match="session is closed"):
        reply.decoder.feed([1])  # nothing keeps the model


def test_a_session_that_was_given_stays_open(onnx_bundle: Bundle) -> None:
    with open_session(onnx_bundle) as session:
        texts = ["".join(generate(onnx_bundle, PROMPT, session=session, max_tokens=4)) for _ in range(2)]
    assert texts[0] == texts[1]
