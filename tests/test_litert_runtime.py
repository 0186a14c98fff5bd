"""What is particular to LiteRT; `tests/contracts` holds what every runtime must do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ai_edge_litert
import msgspec
import numpy as np
import pytest

from edgekit.bundle import MANIFEST, Bundle, record_file
from edgekit.errors import BundleCorrupt, InvalidInput, ToolchainMissing
from edgekit.inference import sample_feeds
from edgekit.op_profile import OpProfile
from edgekit.processing import Arrays
from edgekit.runtimes import litert
from edgekit.runtimes._litert_delegation import origins
from edgekit.runtimes._litert_file import only_layout_copies, operators, parse_model
from edgekit.runtimes._litert_profiler import LIBRARY, watched_inferences
from edgekit.runtimes._op_places import placed
from edgekit.source import load
from edgekit.types import DynamicDim
from tests.tflite_jobs import STATIC, bundle_of, job_of

MODELS = Path(__file__).parent / "models.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = load(f"{MODELS}:two_inputs")
    made = bundle_of(model, job_of(model), tmp_path_factory.mktemp("two_inputs"))
    (made.path / MANIFEST).write_text(made.manifest.to_json(), encoding="utf-8")
    return made


@pytest.fixture
def feeds() -> Arrays:
    return {"tokens": np.arange(6, dtype=np.int64)[None], "offset": np.ones((1, 8), np.float32)}


def test_ids_become_int32_and_those_that_do_not_fit_are_named(bundle: Bundle, feeds: Arrays) -> None:
    model = load(f"{MODELS}:two_inputs")
    with litert.open_session(bundle) as session:
        np.testing.assert_allclose(session.run(feeds)["mean"], model(feeds)["mean"], atol=1e-6)
        with pytest.raises(InvalidInput, match=r"'tokens' holds 0 to 4294967296.*int32, which ends at 2147483647"):
            session.run({**feeds, "tokens": np.array([[0, 1, 2, 3, 4, 2**32]])})


def test_an_id_beyond_the_table_is_an_input_error_and_the_session_lives_on(bundle: Bundle, feeds: Arrays) -> None:
    with litert.open_session(bundle) as session:
        with pytest.raises(InvalidInput, match=r"index out of bounds. Got 77"):
            session.run({**feeds, "tokens": np.full((1, 6), 77)})
        assert session.run(feeds)["mean"].shape == (1, 8)


def test_every_op_is_counted_once_and_what_xnnpack_left_is_explained(bundle: Bundle, feeds: Arrays) -> None:
    found = litert.delegation(bundle, feeds)
    plain = litert.open_interpreter(bundle, 1)._get_ops_details()
    assert sum(sum(ops.values()) for ops in found.units.values()) == sum(op["op_name"] != "DELEGATE" for op in plain)
    assert found.units["builtin"] == {"RESHAPE": 1, "EMBEDDING_LOOKUP": 1}
    assert found.units["xnnpack"]["FULLY_CONNECTED"] == 1
    assert found.partitions == 1
    assert found.delegated_share == 4 / 6
    assert {(f.op, f.where, f.reason) for f in found.fallbacks} == {
        ("EMBEDDING_LOOKUP", "table", "XNNPACK has no kernel for EMBEDDING_LOOKUP"),
        ("RESHAPE", "table", "XNNPACK did not take this RESHAPE on int32"),
    }


def test_float_islands_and_layout_copies_of_a_quantised_model_are_listed(pixels_npz: Path, tmp_path: Path) -> None:
    model = load(f"{MODELS}:small_conv")
    samples = tuple({"pixels": image[None]} for image in np.load(pixels_npz)["pixels"][:8])
    scheme = msgspec.structs.replace(STATIC, keep_float=("depthwise",))
    for kept, islands in ((scheme, ("DEPTHWISE_CONV_2D depthwise",)), (STATIC, ())):
        made = bundle_of(model, job_of(model, kept, samples), tmp_path)
        found = litert.delegation(made, samples[0])
        assert found.float_islands == islands
        assert found.layout_copies == 2  # the image on its way in, and before the mean over space
        assert found.fallbacks == ()


def test_names_of_fused_tensors_list_their_nodes_in_execution_order() -> None:
    assert origins("blocks.1.act/12;;blocks.1.conv/9;2") == [(9, "blocks.1.conv"), (12, "blocks.1.act")]
    assert origins("/3;_dequant") == [(3, "")]
    assert origins("serving_default_pixels") == []


def test_a_file_without_the_operand_of_an_op_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    from ai_edge_litert.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model_from_bytearray(bundle.artifact_path.read_bytes())
    content.subgraphs[0].operators[-2].inputs = [-1, 1]
    broken = altered(bundle, tmp_path, bytes(flatbuffer_utils.convert_object_to_bytearray(content)))
    with pytest.raises(BundleCorrupt, match=r"op 4 \(ADD\) lacks its operand 0"):
        litert.open_session(broken)


def test_damaged_files_raise_and_never_end_the_process(bundle: Bundle, tmp_path: Path) -> None:
    """In a process of its own, which must come to its end."""
    result = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(bundle.path), str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    counts = dict(line.split() for line in result.stdout.splitlines())
    assert set(counts) <= {"BundleCorrupt", "InvalidInput", "ran"}
    assert int(counts["BundleCorrupt"]) > 60


def test_a_session_prints_nothing_and_loads_no_torch(bundle: Bundle) -> None:
    code = (
        "import sys; from edgekit.bundle import Bundle; from edgekit.runtimes.litert import open_session;"
        f"open_session(Bundle.open({str(bundle.path)!r})); assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_missing_runtime_names_the_line_to_type(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in litert.INTERPRETERS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ToolchainMissing, match=r"pip install 'edgekit\[litert\]'"):
        litert.open_session(bundle)


def altered(bundle: Bundle, folder: Path, content: bytes) -> Bundle:
    """The bundle around another file, with a manifest that vouches for it."""
    (folder / bundle.artifact.path).write_bytes(content)
    artifact = msgspec.structs.replace(bundle.artifact, **record_file(folder, bundle.artifact.path))
    return Bundle(folder, msgspec.structs.replace(bundle.manifest, artifacts=(artifact,)))


DAMAGE = """
import sys
from collections import Counter
from pathlib import Path
import numpy as np
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.runtimes.litert import open_session
bundle, folder = Bundle.open(sys.argv[1]), Path(sys.argv[2])
content, rng, counts = bundle.artifact_path.read_bytes(), np.random.default_rng(0), Counter()
feeds = {"tokens": np.zeros((1, 6), np.int64), "offset": np.zeros((1, 8), np.float32)}
for attempt in range(120):
    damaged = bytearray(content)
    if attempt % 3 == 0:
        damaged = damaged[: rng.integers(len(content))]
    elif attempt % 3 == 1:
        damaged[int(rng.integers(len(content)))] = int(rng.integers(256))
    else:
        damaged[8:] = rng.bytes(len(content) - 8)
    (folder / bundle.artifact.path).write_bytes(bytes(damaged))
    try:
        with open_session(Bundle(folder, bundle.manifest)) as session:
            session.run(feeds)
        counts["ran"] += 1
    except EdgekitError as error:
        counts[type(error).__name__] += 1
for name, count in counts.items():
    print(name, count)
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": (1, 9)}, r"'offset' as float32\[1, 8\], the manifest says offset: float32\[1, 9\]"),
        ({"shape": (8,)}, r"'offset' as float32\[1, 8\]"),
        ({"dtype": "int64"}, "'offset' as float32, the manifest says offset: int64"),
    ],
)
def test_a_manifest_of_another_shape_or_dtype_than_the_files_is_refused(
    bundle: Bundle, change: dict[str, Any], said: str
) -> None:
    tokens, offset = bundle.manifest.inputs
    changed = (tokens, msgspec.structs.replace(offset, **change))
    with pytest.raises(BundleCorrupt, match=said):
        litert.open_session(Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, inputs=changed)))


def test_integers_without_a_scale_are_no_floats(bundle: Bundle) -> None:
    tokens, offset = bundle.manifest.inputs
    changed = (msgspec.structs.replace(tokens, dtype="float32"), offset)
    with pytest.raises(BundleCorrupt, match="'tokens' as int32 without the one scale and zero point"):
        litert.open_session(Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, inputs=changed)))


def test_sizes_that_the_file_cannot_take_are_an_input_error_and_the_session_lives_on(
    bundle: Bundle, feeds: Arrays
) -> None:
    tokens, offset = bundle.manifest.inputs
    inputs = (tokens, msgspec.structs.replace(offset, shape=(1, "width")))
    dynamic = (DynamicDim(name="width", minimum=1, maximum=9),)
    manifest = msgspec.structs.replace(bundle.manifest, inputs=inputs, dynamic=dynamic)
    with litert.open_session(Bundle(bundle.path, manifest)) as session:
        expected = session.run(feeds)["mean"]
        with pytest.raises(InvalidInput, match="LiteRT cannot take inputs of these sizes"):
            session.run({**feeds, "offset": np.ones((1, 5), np.float32)})
        np.testing.assert_array_equal(session.run(feeds)["mean"], expected)


def test_layout_copies_alone_are_a_model_that_runs(tmp_path: Path) -> None:
    model = load(f"{MODELS}:small_conv")
    content = bundle_of(model, job_of(model), tmp_path).artifact_path.read_bytes()
    alone = only_layout_copies(content)
    assert len(alone) < len(content) / 2  # without the weights
    assert {kind for kind, _ in operators(parse_model(alone))} == {"TRANSPOSE"}


def test_the_older_runtime_takes_float_models_and_refuses_weights_with_a_scale_a_channel(
    bundle: Bundle, feeds: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer interpreter under the older one's name: their calls are the same, their int8 kernels are not."""
    expected = litert.open_session(bundle).run(feeds)
    model = load(f"{MODELS}:small_conv")
    samples = tuple({"pixels": np.full((1, 3, 32, 32), value, np.float32)} for value in (0.0, 1.0))
    int8 = bundle_of(model, job_of(model, STATIC, samples), tmp_path)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", sys.modules["ai_edge_litert.interpreter"])
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    answer = litert.open_session(bundle).run(feeds)
    assert all(np.array_equal(answer[name], expected[name]) for name in expected)
    with pytest.raises(ToolchainMissing, match=r"one scale a matrix.*pip install 'edgekit\[litert\]'"):
        litert.open_session(int8)


# The profiler of LiteRT's C library


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Ops that take microseconds."""
    model = load(f"{MODELS}:wide_conv")
    return bundle_of(model, job_of(model), tmp_path_factory.mktemp("wide_conv"))


def ops_of(bundle: Bundle, **changed: Any) -> OpProfile:
    return litert.time_ops(bundle, {**sample_feeds(bundle), **changed})


def test_ops_within_xnnpack_are_timed_under_its_names(conv: Bundle) -> None:
    found = ops_of(conv)
    assert found.reason is None
    assert found.ops[0].op.startswith("Convolution (NHWC, F32)")
    assert {op.unit for op in found.ops} == {"xnnpack"}
    assert found.watched_s is not None
    assert 0.2 * found.watched_s < found.ops_s < 5 * found.watched_s


def test_ops_that_xnnpack_left_are_the_ones_that_the_manifest_explains(bundle: Bundle, feeds: Arrays) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, delegation=litert.delegation(bundle, feeds))
    arrays = {"tokens": feeds["tokens"].astype(np.int32), "offset": feeds["offset"]}
    library = Path(ai_edge_litert.__file__).with_name(LIBRARY)
    _, seconds, inferences = watched_inferences(library, bundle.artifact_path, litert.SIGNATURE, arrays, 1)
    assert len(seconds) == len(inferences)
    assert manifest.delegation is not None
    found = placed(inferences[0], "builtin", manifest.delegation.fallbacks)
    assert [(op.op, op.module) for op in found if op.unit == "builtin"][-1] == ("EMBEDDING_LOOKUP", "table")


def test_what_litert_refuses_is_the_reason(
    conv: Bundle, bundle: Bundle, feeds: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamic = (DynamicDim(name="batch", minimum=1, maximum=8),)
    varying = replace(conv, manifest=msgspec.structs.replace(conv.manifest, dynamic=dynamic))
    assert ops_of(varying).reason == "it is asked of models whose inputs have one size, or listed sizes"
    library = Path(ai_edge_litert.__file__).with_name(LIBRARY)
    with pytest.raises(RuntimeError, match="an input takes 24 bytes, and 48 were given"):
        watched_inferences(library, bundle.artifact_path, litert.SIGNATURE, feeds, 1)
    with pytest.raises(RuntimeError, match="there is no signature 'other'"):
        watched_inferences(library, bundle.artifact_path, "other", feeds, 1)
    monkeypatch.setattr(litert, "LIBRARY", "libNone.so")
    assert "LiteRT's C library does not give it" in str(ops_of(conv).reason)
    monkeypatch.setattr(litert, "CHECKED", "9.9.")
    assert "was checked with ai-edge-litert 9.9.x, and this is 2." in str(ops_of(conv).reason)
    assert ops_of(conv).ops == ()
