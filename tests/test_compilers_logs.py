"""What compilers say is read strictly: text that is cut, foreign or absurd becomes a sentence, never a figure."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, UnsupportedModel
from edgekit.exporters.compilers import _rknn_log, _vela_program

HEAD = (
    "cycles_total,inference_time,sram_memory_used,dram_memory_used,on_chip_flash_memory_used,off_chip_flash_memory_used"
)
STAMP = "D RKNN: [18:16:09.210] "
TABLE = "\n".join(
    STAMP + row
    for row in (
        "                Network Layer Information Table     ",
        "-" * 40,
        "ID   OpType         DataType Target InputShape    OutputShape  Cycles(DDR/NPU/Total)  RW(KB)  FullName   ",
        "0    InputOperator  INT8     CPU    \\  (1,3,32,32)  0/0/0  0  InputOperator:x",
        "1    ConvClip       INT8     NPU    (1,3,32),(16)  (1,16,15,15) 391/2160/2160  5  Conv:node_conv2d",
        "2    Reshape        INT8     CPU    (1,16),(4)  (16,169)     0/0/0  2  Reshape:clip_1_rs",
        "3    Conv           INT8     NPU    (16,1,1)  (16,1,1,1)   143/1536/1536  3  Conv:clip_1_rs#1",
        "4    Conv           INT8     NPU    (16,1,1)  (16,1,1,1)   19/64/64  0  Conv:node_linear#2",
        "5    OutputOperator INT8     CPU    (1,10)  \\  0/0/0  0  OutputOperator:y",
        "-" * 40,
        "Total Internal Memory Size: 20.875KB",
        "Total Weight Memory Size: 6.25KB",
    )
)
MODULES = {"node_conv2d": "body.0", "clip_1": "body.1", "clip": "body", "node_linear": "head"}


def summary(folder: Path, text: str) -> Path:
    (folder / "out_summary_System.csv").write_text(text, encoding="utf-8")
    return folder


def test_velas_summary_is_read_in_bytes_and_seconds(tmp_path: Path) -> None:
    found = _vela_program.read_estimate(summary(tmp_path, f"{HEAD},more\n7271789,0.007271789,382.0,6256.5,0.0,0,x\n"))
    assert (found.cycles, found.latency_s) == (7271789, 0.007271789)
    assert found.memory_bytes == {"sram": 382 * 1024, "dram": 6406656}


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "\0\0\0", HEAD, f"{HEAD}\n", f"{HEAD}\n1,2\n", f"{HEAD}\n1,1,1,1,1,1\n1,1,1,1,1,1\n",
        f"{HEAD}\nx,1,1,1,1,1\n", f"{HEAD}\n1.5,1,1,1,1,1\n", f"{HEAD}\n1,nan,1,1,1,1\n", f"{HEAD}\n1,inf,1,1,1,1\n",
        f"{HEAD}\n1,1,inf,1,1,1\n", f"{HEAD}\n1,1,nan,1,1,1\n", f"{HEAD}\n-1,1,1,1,1,1\n", f"{HEAD}\n1,-1,1,1,1,1\n",
        f"{HEAD}\n1,1,-1,1,1,1\n", f"{HEAD[:40]}\n1,1,1,1,1,1\n",
    ],
)  # fmt: skip
def test_a_summary_that_is_not_velas_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(EdgekitError, match="vela's summary"):
        _vela_program.read_estimate(summary(tmp_path, text))


def test_no_summary_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="vela's summary is not as version 5 writes it"):
        _vela_program.read_estimate(tmp_path)


def test_rknns_table_gives_placement_and_cycles() -> None:
    found = _rknn_log.placement(TABLE, "npu", MODULES)
    assert found.units == {"npu": {"ConvClip": 1, "Conv": 2}, "cpu": {"Reshape": 1}}
    assert (found.unit, found.partitions) == ("npu", 2)
    (fallback,) = found.fallbacks
    assert (fallback.op, fallback.where) == ("Reshape", "body.1")
    expected = _rknn_log.estimate(TABLE)
    assert (expected.cycles, expected.latency_s) == (2160 + 1536 + 64, None)
    assert expected.memory_bytes == {"internal": 21376, "weight": 6400}


def test_a_layer_made_of_nothing_known_keeps_its_own_name() -> None:
    (fallback,) = _rknn_log.placement(TABLE, "npu", {}).fallbacks
    assert fallback.where == "clip_1_rs"


def test_a_model_that_stays_on_the_cpu_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="leaves every op to the CPU"):
        _rknn_log.placement(TABLE.replace("NPU   ", "CPU   "), "npu", {})


def test_the_last_table_of_a_log_counts() -> None:
    other = TABLE.replace("2160/2160", "9/9")
    assert _rknn_log.estimate(f"{other}\n{TABLE}").cycles == _rknn_log.estimate(TABLE).cycles


@pytest.mark.parametrize("rows", range(3, 9))
def test_a_table_that_is_cut_is_refused(rows: int) -> None:
    with pytest.raises(EdgekitError, match="table of layers"):
        _rknn_log.layers("\n".join(TABLE.splitlines()[:rows]))


def test_a_table_without_one_of_its_rows_is_refused() -> None:
    with pytest.raises(EdgekitError, match="cut or out of order"):
        _rknn_log.layers("\n".join(line for line in TABLE.splitlines() if "Reshape" not in line))


@given(st.integers(0, len(TABLE)), st.text(max_size=30))
def test_a_damaged_log_gives_layers_or_a_sentence(at: int, noise: str) -> None:
    for damaged in (TABLE[:at], TABLE[:at] + noise + TABLE[at:]):
        with contextlib.suppress(EdgekitError):
            assert len(_rknn_log.layers(damaged)) >= 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\x1b[1;31mE\x1b[0m load_onnx: Traceback:\nValueError: Unsupport onnx opset 20, need <= 19!\n\x1b[0m",
         "Unsupport onnx opset 20, need <= 19!"),
        ("just words\nand more", "just words"),
        ("", "it does not say why"),
        ("   \n", "it does not say why"),
    ],
)  # fmt: skip
def test_the_toolkits_last_complaint_is_found(text: str, said: str) -> None:
    assert _rknn_log.last_error(text) == said


def test_the_toolkits_version_is_read() -> None:
    assert _rknn_log.version("I rknn-toolkit2 version: 2.5.0\n") == "2.5.0"
    assert _rknn_log.version("") == "of no known version"
