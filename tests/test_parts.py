"""A bundle in parts: exported and verified as two graphs and as a chain, asked about photographs, and damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgekit
from edgekit.bundle import Bundle
from edgekit.cli.app import run
from edgekit.cli.parts import missed
from edgekit.dataset import photo_bytes
from edgekit.drafting import ExportOptions
from edgekit.errors import BundleCorrupt, EdgekitError, InvalidInput, OutputExists
from edgekit.inference import open_session
from edgekit.measurement import summarize
from edgekit.multipart import export_parts
from edgekit.page.subjects import find_bundles
from edgekit.parts import BundleInParts, is_in_parts, verify_parts
from edgekit.place import Here
from edgekit.segmentation import Box, Point
from edgekit.segmenting import SegmentSession
from edgekit.verification import stored_tolerance
from tests.pages import measurement
from tests.scripted_worker import Scripted

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def exported(thin_sam: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both parts in fp32, and the JSON that the command printed."""
    folder = tmp_path_factory.mktemp("parts")
    arguments = ["export", "-m", str(thin_sam), "-d", "raspberrypi5", "--precision", "fp32", "--format", "onnx"]
    with pytest.MonkeyPatch.context() as patch, (folder / "report.json").open("w") as stream:
        patch.setattr("sys.stdout", stream)
        assert run([*arguments, "-o", str(folder / "out"), "--json", "-q"]) == 0
    return folder / "out"


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "out"))


def test_one_folder_holds_two_verified_bundles_and_what_binds_them(exported: Path) -> None:
    found = BundleInParts.open(exported)
    assert sorted(path.name for path in exported.iterdir()) == ["encoder", "parts.json", "rest"]
    assert [bundle.manifest.name for bundle in found.bundles] == ["toy-encoder", "toy-rest"]
    assert [str(spec) for spec in found.rest.manifest.inputs] == [
        "last_hidden_state: float32[1, 64, 8, 8]", "input_points: float32[1, 8, 2]", "input_labels: int32[1, 8]",
    ]  # fmt: skip
    assert all(bundle.manifest.parity and bundle.manifest.parity.ok for bundle in found.bundles)
    assert found.record.chain is not None
    assert found.record.chain.parity.ok
    assert found.record.chain.parity.origin == "real"
    assert found.record.chain.mask_iou > 0.99
    assert not list(exported.parent.glob("*.partial"))


def test_the_last_screen_has_reasons_parity_and_times_of_each_part(exported: Path, capsys: Any) -> None:
    said = json.loads((exported.parent / "report.json").read_text())
    assert list(said["parts"]) == ["encoder", "rest"]
    for part in said["parts"].values():
        assert part["rows"][0]["parity"]["ok"]
        assert part["rows"][0]["measurement"]["latency"]["p50_s"] > 0
    assert said["chain"]["parity"]["ok"]
    from edgekit.cli.parts import show_exported

    assert show_exported(BundleInParts.open(exported), json=False) == 0
    shown = capsys.readouterr().out
    for wanted in ("encoder\n", "rest\n", "both\n", "asked for", "a picture and its first prompt", "with PyTorch's"):
        assert wanted in shown


PROMPTS: list[tuple[list[Point], list[Box]]] = [
    ([(150.0, 100.0)], []),
    ([(150.0, 100.0, 1), (20.0, 30.0, 0)], []),
    ([], [(30.0, 20.0, 200.0, 180.0)]),
    ([(150.0, 100.0, 1)], [(30.0, 20.0, 200.0, 180.0)]),
]


@pytest.mark.parametrize(("points", "boxes"), PROMPTS)
def test_a_session_segments_like_transformers_with_its_own_processor(
    exported: Path, thin_sam: Path, points: list[Point], boxes: list[Box]
) -> None:
    from PIL import Image

    photo = np.random.default_rng(0).integers(0, 256, (200, 260, 3), dtype=np.uint8)
    sam = transformers.SamModel.from_pretrained(thin_sam, attn_implementation="eager").eval()
    processor = transformers.SamProcessor(transformers.SamImageProcessorPil.from_pretrained(thin_sam))
    named: dict[str, Any] = {}
    if points:
        named["input_points"] = [[list(point[:2]) for point in points]]
        named["input_labels"] = [[point[2] if len(point) == 3 else 1 for point in points]]
    if boxes:
        named["input_boxes"] = [[list(box) for box in boxes]]
    inputs = processor(Image.fromarray(photo), return_tensors="pt", **named)
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        expected = sam(**inputs)
    best = int(expected.iou_scores[0, 0].argmax())
    mask = processor.post_process_masks(expected.pred_masks, *sizes)[0][0, best].numpy()
    with SegmentSession(BundleInParts.open(exported)) as session:
        found = session.segment(photo, points, boxes)
    assert found.mask.shape == (200, 260)
    assert found.mask.dtype == bool
    assert (found.mask == mask).mean() > 0.999
    assert found.scores == pytest.approx([float(expected.iou_scores[0, 0, best])], abs=1e-4)


def test_the_embedding_of_a_photograph_is_computed_once(exported: Path, tmp_path: Path) -> None:
    content = photo_bytes("coffee")
    path = tmp_path / "coffee.jpg"
    path.write_bytes(content)
    assert isinstance(edgekit.open_session(exported), SegmentSession)
    with edgekit.open_session(BundleInParts.open(exported)) as session:
        first = session.segment(path, [(100, 100)])
        again = session.segment(str(path), [(100, 100)])
        session.segment(content, [(200, 100)])
        assert np.array_equal(first.mask, again.mask)
        assert {name: stats.calls for name, stats in session.stats().items()} == {"encoder": 1, "rest": 3}
        session.segment(photo_bytes("rocket"), [(100, 100)])
        session.segment(path, [(100, 100)])
        assert session.stats()["encoder"].calls == 3
    with pytest.raises(InvalidInput, match=r"this session is closed"):
        session.segment(path, [(100, 100)])


def test_several_boxes_mark_an_object_each(exported: Path) -> None:
    photo, boxes = photo_bytes("coffee"), [(10, 10, 100, 100), (200, 50, 400, 300)]
    with SegmentSession(BundleInParts.open(exported)) as session:
        alone = [session.segment(photo, boxes=[box]) for box in boxes]
        both = session.segment(photo, boxes=boxes)
        assert np.array_equal(both.mask, alone[0].mask | alone[1].mask)
        assert both.scores == alone[0].scores + alone[1].scores
        with pytest.raises(InvalidInput, match=r"points do not say which of several boxes"):
            session.segment(photo, [(20, 20)], boxes)
        for image, message in ((b"no image", "not a readable image"), (Path("missing.png"), "cannot be read")):
            with pytest.raises(InvalidInput, match=message):
                session.segment(image, [(1, 1)])


def test_the_parts_are_verified_again_one_by_one_and_as_a_chain(exported: Path) -> None:
    found = BundleInParts.open(exported)
    gates = [stored_tolerance(bundle) for bundle in found.bundles]
    parities, chain = verify_parts(found, [*gates, gates[0]])
    assert [parity.ok for parity in parities.values()] == [True, True]
    assert chain.parity.ok
    assert chain.parity.samples == 8


def test_the_verbs_take_the_folder(exported: Path, tmp_path: Path, capsys: Any) -> None:
    photo = tmp_path / "coffee.jpg"
    photo.write_bytes(photo_bytes("coffee"))
    mask = tmp_path / "mask.png"
    assert run(["verify", str(exported), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert run(["verify", str(exported), "--min-sqnr-db", "199"]) == 1
    assert "SQNR" in capsys.readouterr().out
    asked = ["run", str(exported), "--input", str(photo), "--point", "300,200", "--point", "10,10,0"]
    assert run([*asked, "--save", str(mask), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["size"] == [320, 480]
    assert len(said["scores"]) == 1
    from PIL import Image

    with Image.open(mask) as saved:
        assert saved.size == (480, 320)
        assert np.asarray(saved).mean() / 255 == pytest.approx(said["share"])
    assert run(["inspect", str(exported), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["parts"]) == ["encoder", "rest"]
    assert run(["profile", str(exported), "--calls", "12", "--trials", "1", "--json", "-q"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["p50_s"] == sum(part["latency"]["p50_s"] for part in measured["parts"].values())
    assert [bundle.path.name for bundle in find_bundles([exported])] == ["encoder", "rest"]
    assert run(["profile", str(exported), "--calls", "5", "--trials", "1", "--max-latency-ms", "1e-6", "-q"]) == 1
    assert re.search(r"p50 of encoder and rest is [\d.]+ ms, the limit is 1e-06 ms", capsys.readouterr().err)


def test_the_gates_hold_for_what_a_picture_takes_in_all_parts() -> None:
    measured = {
        name: measurement(latency=summarize([seconds] * 9), peak_rss_bytes=megabytes * 10**6)
        for name, seconds, megabytes in (("encoder", 0.004, 50), ("rest", 0.002, 30))
    }
    assert missed(measured, None, None) == missed(measured, 6.01, 80) == []
    assert missed(measured, 5.0, 79) == [
        "p50 of encoder and rest is 6.00 ms, the limit is 5 ms",
        "peak memory of encoder and rest, a process each, is 80.00 MB, the limit is 79 MB",
    ]


def test_both_parts_work_in_workers_of_a_place_as_they_do_here(exported: Path) -> None:
    found, place = BundleInParts.open(exported), Here()  # as a board's: it starts a worker for each part
    photo = photo_bytes("coffee")
    with SegmentSession(found) as here, SegmentSession(found, place=place) as there:
        for points in ([(300.0, 200.0)], [(30.0, 20.0)]):
            expected, segments = here.segment(photo, points), there.segment(photo, points)
            assert np.array_equal(segments.mask, expected.mask)
            assert segments.scores == expected.scores
        assert {name: stats.calls for name, stats in there.stats().items()} == {"encoder": 1, "rest": 2}
        assert all(stats.total_s > 0 for stats in there.stats().values())
    with pytest.raises(InvalidInput, match=r"this session is closed"):
        there.segment(photo, [(1, 1)])
    gate = stored_tolerance(found.encoder)
    parities, chain = verify_parts(found, [gate] * 3, place=place)
    assert [parity.ok for parity in (*parities.values(), chain.parity)] == [True] * 3


def test_a_part_that_does_not_start_at_a_place_leaves_no_worker_of_the_other(exported: Path) -> None:
    place = Scripted([{}, {"opening": {"error": "no room", "type": "InvalidInput"}}])
    with pytest.raises(InvalidInput, match="no room"):
        SegmentSession(BundleInParts.open(exported), place=place)
    assert [worker.poll() is None for worker in place.started] == [False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "OUT", "--input", "a.png"], "cannot be read"),
        (["run", "OUT", "--input", "PHOTO"], "nothing marks the object"),
        (["run", "OUT", "--input", "PHOTO", "--point", "1"], "--point '1' is not X,Y or X,Y,0"),
        (["run", "OUT", "--input", "PHOTO", "--point", "1,b"], "--point '1,b' is not X,Y or X,Y,0"),
        (["run", "OUT", "--input", "PHOTO", "--point", "1,2,0.5"], "is labelled 0.5"),
        (["run", "OUT", "--input", "PHOTO", "--box", "1,2,3"], "--box '1,2,3' is not X0,Y0,X1,Y1"),
        (["run", "OUT", "--input", "PHOTO", "--point", "9,9", "--save", "m.jpg"], "give --save m.png"),
        (["run", "OUT", "--input", "PHOTO", "--input", "PHOTO"], "one photograph at a time"),
        (["run", "OUT", "--prompt", "a cat"], "one photograph at a time"),
        (["run", "OUT/encoder", "--input", "PHOTO", "--point", "1,2"], "holds none"),
        (["profile", "OUT", "--aa"], "--aa is for one graph: give it with a part"),
        (["profile", "OUT", "-o", "x.json"], "-o is for one graph"),
        (["compare", "OUT", "OUT"], "holds a model in parts, each a bundle: name one"),
        (["export", "-m", "SAM", "-d", "raspberrypi5", "-o", "NEW", "--format", "all"], "to one format at a time"),
        (["export", "-m", "SAM", "-d", "raspberrypi5", "-o", "OUT"], "is there already"),
        (["plan", "-m", "SAM", "-d", "raspberrypi5", "-o", "plan.json"], "a plan is for one graph"),
    ],
)
def test_what_the_verbs_cannot_do_is_one_sentence(
    exported: Path, thin_sam: Path, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    photo = tmp_path / "coffee.jpg"
    photo.write_bytes(photo_bytes("coffee"))
    names = {"OUT": exported, "PHOTO": photo, "SAM": thin_sam, "NEW": tmp_path / "new"}
    filled = [str(names.get(each, each)).replace("OUT/", f"{exported}/") for each in arguments]
    assert run([*filled, *(["-q"] if arguments[0] != "run" else [])]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_plan_shows_both_graphs(thin_sam: Path, capsys: Any) -> None:
    assert run(["export", "-m", str(thin_sam), "-d", "raspberrypi5", "-o", "unused", "--dry-run", "--json", "-q"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert {name: part["plan"]["precision"] for name, part in parts.items()} == {
        "encoder": "int8-dynamic", "rest": "int8-dynamic",
    }  # fmt: skip
    assert not Path("unused").exists()


def test_the_whole_model_is_no_single_bundle(thin_sam: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'toy' is exported as two graphs: call edgekit.export_parts"):
        edgekit.export(str(thin_sam), "raspberrypi5", tmp_path / "out")
    with pytest.raises(InvalidInput, match=r"'Linear' is one graph: edgekit.export makes one bundle of it"):
        export_parts(edgekit.load(torch.nn.Linear(2, 2), torch.ones(1, 2)), "raspberrypi5", tmp_path / "out")


def test_a_missed_gate_leaves_nothing_and_names_the_part(thin_sam: Path, tmp_path: Path) -> None:
    options = ExportOptions(format="onnx", precision="fp32", sqnr_db_min=199.0, measure=False)
    with pytest.raises(EdgekitError, match=r"the encoder: 'toy-encoder' at fp32 does not answer like PyTorch"):
        export_parts(str(thin_sam), "raspberrypi5", tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_bundle_in_parts_is_never_replaced(thin_sam: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"holds no parts.json, so --force will not replace it"):
        export_parts(str(thin_sam), "raspberrypi5", tmp_path, ExportOptions(force=True))


def test_a_session_needs_no_torch(exported: Path, tmp_path: Path) -> None:
    photo = tmp_path / "coffee.jpg"
    photo.write_bytes(photo_bytes("coffee"))
    program = (
        "import sys, edgekit; session = edgekit.open_session(sys.argv[1]);"
        "found = session.segment(sys.argv[2], points=[(300, 200)]);"
        "print(found.mask.shape, 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-P", "-c", program, str(exported), str(photo)], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "(320, 480) False"


@pytest.mark.slow
@pytest.mark.toolchain
@pytest.mark.parametrize("format", ["executorch", "tflite"])
def test_other_formats_hold_the_same_chain(thin_sam: Path, exported: Path, tmp_path: Path, format: str) -> None:
    pytest.importorskip({"executorch": "executorch", "tflite": "litert_torch"}[format])
    options = ExportOptions(format=format, precision="fp32", measure=False)
    found = export_parts(str(thin_sam), "raspberrypi5", tmp_path / "out", options)
    assert found.record.chain is not None
    assert found.record.chain.parity.ok
    photo = photo_bytes("coffee")
    with edgekit.open_session(found) as session, edgekit.open_session(BundleInParts.open(exported)) as other:
        mask, scores = session.segment(photo, [(100, 100)])
        expected = other.segment(photo, [(100, 100)])
    assert (mask == expected.mask).mean() > 0.999
    assert scores == pytest.approx(expected.scores, abs=1e-4)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "has schema version 2"),
        ({"sha256": {}}, "must name encoder and rest, not nothing"),
        ({"sha256": {"encoder": "0" * 64, "../rest": "0" * 64}}, r"must name encoder and rest, not encoder, ../rest"),
        ({"sha256": {"encoder": "0" * 64, "rest": "0" * 64}}, "the parts were not exported together"),
        ({"segmentation": {"encoder": "e", "places": 1}}, "two places or more"),
        ({"segmentation": {"encoder": "e", "places": 9}}, "takes input_points"),
        ({"segmentation": {"encoder": "e", "places": 8, "masks": "other"}}, "gives no other"),
        ({"segmentation": 3}, "is not valid"),
        ({"more": 1}, "is not valid"),
    ],
)
def test_a_record_that_was_altered_is_refused(copied: Path, changes: dict[str, Any], message: str) -> None:
    edit(copied / "parts.json", **changes)
    with pytest.raises(BundleCorrupt, match=message):
        BundleInParts.open(copied)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_record_that_is_none_is_refused(copied: Path, content: bytes) -> None:
    (copied / "parts.json").write_bytes(content)
    with pytest.raises(BundleCorrupt, match=r"parts.json' is not valid"):
        open_session(copied)


def test_a_part_of_another_export_or_without_its_files_is_refused(copied: Path) -> None:
    manifest = copied / "rest" / "manifest.json"
    original = manifest.read_bytes()
    manifest.write_bytes(original + b" ")
    with pytest.raises(BundleCorrupt, match=r"not exported together. Export the model again"):
        BundleInParts.open(copied)
    manifest.write_bytes(original)
    artifact = copied / "rest" / "model.onnx"
    artifact.write_bytes(artifact.read_bytes()[:-1])
    with pytest.raises(BundleCorrupt, match=r"model.onnx' has"):
        BundleInParts.open(copied)
    shutil.rmtree(copied / "rest")
    with pytest.raises(BundleCorrupt, match=r"rest/manifest.json' is missing"):
        BundleInParts.open(copied)
    assert is_in_parts(copied)
    with pytest.raises(InvalidInput, match=r"holds a model in parts, each a bundle: name one"):
        Bundle.open(copied)
    with pytest.raises(InvalidInput, match=r"is no bundle in parts: it has no parts.json"):
        BundleInParts.open(copied / "encoder")
