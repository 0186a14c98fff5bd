"""The time of ops: from a profiler's events to figures, their places in the model, and the tables people read."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import Bundle, Fallback
from edgekit.op_profile import (
    LEAST_CALLS,
    MOST_CALLS,
    OpEvent,
    OpProfile,
    by_type,
    no_ops,
    summarize_ops,
    watched_calls,
)
from edgekit.report_ops import NOWHERE, op_table, ops_text, type_table
from edgekit.runtimes._onnx_modules import node_modules
from edgekit.runtimes._op_places import placed
from edgekit.runtimes.onnxruntime import FUSED

EVENTS = st.lists(
    st.builds(
        OpEvent,
        op=st.sampled_from(["Conv", "Add"]),
        unit=st.sampled_from(["cpu", "npu"]),
        name=st.sampled_from(["a", "b", None]),
        seconds=st.floats(0, 1),
    ),
    max_size=8,
)


def event(op: str, ms: float, name: str | None = None, unit: str = "cpu", module: str | None = None) -> OpEvent:
    return OpEvent(op=op, name=name, unit=unit, module=module, seconds=ms / 1e3)


def two_kinds() -> OpProfile:
    """A convolution that something disturbed once, a smaller one, and a loop's addition that runs twice."""
    runs = [
        [event("Conv", ms, "c0", module="stem"), event("Conv", 1, "c1"), event("Add", 0.5, "a"), event("Add", 0.5, "a")]
        for ms in (2, 2, 90)
    ]
    return summarize_ops("a profiler", 4e-3, [5e-3, 4.4e-3, 93e-3], runs)


def test_an_op_takes_its_median_and_shares_add_up() -> None:
    found = two_kinds()
    assert [(op.op, op.name, op.module, op.calls) for op in found.ops] == [
        ("Conv", "c0", "stem", 1),
        ("Conv", "c1", None, 1),
        ("Add", "a", None, 2),
    ]
    assert [op.seconds for op in found.ops] == pytest.approx([2e-3, 1e-3, 1e-3])
    assert [op.share for op in found.ops] == pytest.approx([0.5, 0.25, 0.25])
    assert (found.inferences, found.plain_s, found.watched_s) == (3, 4e-3, 4.4e-3)
    assert found.slowdown == pytest.approx(1.1)
    assert found.ops_s == pytest.approx(4e-3)


@given(st.lists(EVENTS, min_size=1, max_size=6))
def test_whatever_a_profiler_notes_shares_are_of_one_whole(runs: list[list[OpEvent]]) -> None:
    found = summarize_ops("a profiler", 1.0, [1.0] * len(runs), runs)
    assert bool(found.ops) is (found.ops_s > 0) is (found.reason is None)
    assert sum(op.share for op in found.ops) == pytest.approx(1.0 if found.ops else 0.0)
    assert [op.seconds for op in found.ops] == sorted((op.seconds for op in found.ops), reverse=True)
    groups = by_type(found.ops)
    assert sum(op.seconds for op in groups) == pytest.approx(found.ops_s)
    assert sum(op.calls for op in groups) == sum(op.calls for op in found.ops)
    assert len({(op.op, op.unit) for op in groups}) == len(groups)
    assert OpProfile.from_json(found.to_json()) == found


def test_a_profiler_that_notes_nothing_gives_a_reason() -> None:
    assert summarize_ops("a profiler", 1.0, [1.0], [[]]) == no_ops("a profiler", "a profiler noted no op")
    assert no_ops("a profiler", "why").slowdown is None
    below = summarize_ops("a profiler", 1e-6, [2e-6], [[event("Add", 0), event("Mul", 0)]])
    assert below == no_ops("a profiler", "each op took less time than its clock tells apart")


def test_slow_inferences_are_watched_fewer_times() -> None:
    made: list[float] = []

    def slow() -> None:
        made.append(time.perf_counter())
        time.sleep(0.02 if len(made) > 3 else 10 / 1e3)

    calls, plain_s = watched_calls(lambda: None)
    assert calls == MOST_CALLS
    assert 0 < plain_s < 1e-3
    calls, plain_s = watched_calls(slow)
    assert LEAST_CALLS <= calls <= MOST_CALLS
    assert plain_s >= 0.02


# For people


def test_one_line_says_who_measured_and_what_watching_cost() -> None:
    assert ops_text(two_kinds()) == (
        "3 ops, 4.00 ms by a profiler, medians of 3 inferences; the fastest took 4.40 ms watched, 4.00 ms not"
    )
    assert ops_text(no_ops("a profiler", "it is not there")) == "no times of ops by a profiler: it is not there"


def test_tables_show_the_slowest_and_say_how_many_more_there_are() -> None:
    columns, rows = type_table(two_kinds(), 1)
    assert columns == ["op", "unit", "calls", "ms", "share"]
    assert rows == [["Conv", "cpu", "2", "3.000", "75.0%"], ["1 more types", "", "2", "1.000", "25.0%"]]
    columns, rows = op_table(two_kinds(), 2)
    assert columns == ["op", "module", "ms", "share", "name"]  # nobody knows a source line
    assert rows == [["Conv", "stem", "2.000", "50.0%", "c0"], ["Conv", NOWHERE, "1.000", "25.0%", "c1"]]


# Where ops come from

LEFT = [
    Fallback(op="aten.embedding", where="words", source="model.py:3", reason="no kernel"),
    Fallback(op="aten.add", where="model", source=None, reason="no kernel"),
]


def test_ops_outside_of_a_delegate_get_their_places_in_order() -> None:
    events = [event("embedding", 1, unit="portable"), event("Gemm", 1, unit="xnnpack"),
              event("add", 1, unit="portable")]  # fmt: skip
    found = placed(events, "portable", LEFT)
    assert [(each.op, each.module, each.source) for each in found] == [
        ("aten.embedding", "words", "model.py:3"),
        ("Gemm", None, None),
        ("aten.add", "model", None),
    ]


@pytest.mark.parametrize("ops", [(), ("embedding",), ("add", "embedding"), ("add", "add")])
def test_no_place_is_guessed_where_the_ops_are_not_those_of_the_manifest(ops: tuple[str, ...]) -> None:
    events = [event(op, 1, unit="portable") for op in ops]
    assert placed(events, "portable", LEFT) == events


def test_modules_are_read_from_an_onnx_file_as_the_onnx_package_reads_them(small_conv_bundle: Bundle) -> None:
    nodes = onnx.load(small_conv_bundle.artifact_path).graph.node
    expected = {node.name: entry.value or "forward" for node in nodes for entry in node.metadata_props
                if entry.key == "edgekit.module"}  # fmt: skip
    assert "forward" in expected.values()
    assert len(expected) > 1
    assert node_modules(small_conv_bundle.artifact_path) == expected


@given(st.binary(min_size=1, max_size=300), st.integers(0, 2000))
def test_a_damaged_onnx_file_has_no_modules_and_raises_nothing(
    tmp_path_factory: pytest.TempPathFactory, small_conv_bundle: Bundle, noise: bytes, at: int
) -> None:
    whole = small_conv_bundle.artifact_path.read_bytes()
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    for content in (noise, whole[:at] + noise + whole[at + len(noise) :], whole[: at + 1]):
        file.write_bytes(content)
        assert all(isinstance(text, str) for pair in node_modules(file).items() for text in pair)


def test_an_empty_file_has_no_modules(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    assert node_modules(tmp_path / "model.onnx") == {}


@pytest.mark.parametrize("added", ["", "_token_4", "/MatMulAddFusion", "_token_4/Gelu_2"])
def test_what_the_optimiser_adds_to_a_name_is_taken_off(added: str) -> None:
    assert FUSED.sub("", f"node_conv2d_1{added}") == "node_conv2d_1"


def test_a_worker_times_ops_and_goes_on(small_conv_bundle: Bundle) -> None:
    from edgekit.place import HERE, Worker

    with Worker(small_conv_bundle, 1, HERE) as worker:
        found = worker.ops(1)
        assert len(worker.times(2)) == 2
    assert found.ops
    assert {op.unit for op in found.ops} == {"cpu"}
    assert {op.module for op in found.ops} - {None}
    assert msgspec.json.decode(found.to_json(), type=OpProfile) == found
