"""`edgekit bench cost`: measurements in, fits out; hostile files get a sentence."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bench import cost as bench
from edgekit.bench._public_models import PUBLIC
from edgekit.bench._scaling import Point, Size, held_out_scaling, read_sizes, size_of
from edgekit.bench.cost import COLUMNS, CostFit, Graph, calibrations, fit_devices, read_rows, summary, table
from edgekit.cli.app import run
from edgekit.cost.forecast import STORED
from edgekit.cost.kernels import Kernel, Work
from edgekit.cost.latency import Roofline, forecast_latency
from edgekit.errors import InvalidInput
from edgekit.profile import find_device

GOOD = "resnet18,ResNet18,float,Phone,qnn_dlc,0.9,,,NPU"
HEAD = ",".join(COLUMNS)
PROGRAM = Path(__file__).parents[1] / "fit_cost.py"


def written(folder: Path, *lines: str) -> Path:
    path = folder / "data.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def graphs() -> dict[tuple[str, str | None], Graph]:
    """Twelve models of three sizes."""
    found: dict[tuple[str, str | None], Graph] = {}
    for index in range(12):
        size = 32 * 2 ** (index % 4)
        kernel = Kernel(op="conv2d", module="", op_class="conv", rows=size * size, taps=9, inner=size, outer=size,
                        read=size**3, written=size**3, weights=9 * size**2)  # fmt: skip
        found[f"model{index}", None] = Graph(f"family {index // 2}", Work(kernels=(kernel,) * (index + 1)))
    return found


def measured(folder: Path) -> Path:
    """Times of these models on a phone that reaches 2 and 6 tera."""
    lines = [HEAD]
    for precision, rate in (("float", 2e12), ("w8a8", 6e12)):
        dtype = bench.DTYPES[precision]
        truth = Roofline(unit="npu", runtime=None, dtype=dtype, peak_ops_per_s=rate / 0.3, bytes_per_s=50e9,
                         channel_multiple=32, on_chip_bytes=8 << 20, op_overhead_s=2e-6)  # fmt: skip
        for (model, _), graph in graphs().items():
            seconds = forecast_latency(graph.work, truth, STORED[dtype]).seconds
            lines.append(f"{model},Whole,{precision},Phone,qnn_dlc,{1e3 * seconds:.6f},,,NPU")
    lines.append("model0,Whole,float,Phone,qnn_dlc,500,,3,NPU")  # a part ran on the processor
    lines.append("model0,Whole,w4a16,Phone,qnn_dlc,500,,,NPU")
    lines.append("unknown,Whole,float,Phone,qnn_dlc,500,,,NPU")
    lines.append("model0,Whole,float,Watch,qnn_dlc,500,,,NPU")  # one graph is no fit
    return written(folder, *lines)


def test_measurements_become_fits_with_their_errors(tmp_path: Path) -> None:
    found = fit_devices(read_rows(measured(tmp_path)), graphs(), {})
    assert (found.measurements, found.graphs, found.families) == (28, 12, 6)
    assert [(each.device, each.runtime, each.dtype) for each in found.fits] == [
        ("Phone", "qnn", "float16"),
        ("Phone", "qnn", "int8"),
    ]
    for each in found.fits:
        assert each.held_out.graphs == 12
        assert each.held_out.median < 0.25
        assert each.held_out.spearman > 0.9
        assert not each.rank_only
    rates = [each.fit.rates["conv"] for each in found.fits]
    assert rates[1] / rates[0] == pytest.approx(3, rel=0.25)
    assert CostFit.from_json(found.to_json()) == found


def test_tables_show_a_row_a_device_and_a_row_a_runtime(tmp_path: Path) -> None:
    found = fit_devices(read_rows(measured(tmp_path)), graphs(), {})
    columns, rows = table(found)
    assert columns[:2] == ["device", "runtime"]
    assert rows[0][:2] == ["Phone", "qnn"]
    assert rows[0][-1] == "-"  # no int16 there
    columns, rows = summary(found)
    assert [row[:3] for row in rows] == [["qnn", "float16", "1"], ["qnn", "int8", "1"]]
    assert rows[0][-1] == "1 of 1"


def test_calibrations_follow_the_profile_and_cap_fractions(tmp_path: Path) -> None:
    found = fit_devices(read_rows(measured(tmp_path)), graphs(), {})
    unit = find_device("snapdragon-8-gen-3").main_unit
    made = calibrations(found, "Phone", "qnn", unit, "2026-01-01")
    assert [list(each.efficiency) for each in made] == [["float16"], ["int8"]]
    assert all(each.held_out_p90.keys() == {"model"} for each in made)
    assert calibrations(found, "Phone", "litert", unit, "2026-01-01") == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["model,device", "a,b"], "has no column component, precision, runtime, ms, gpu, cpu, unit: it needs"),
        ([HEAD], "holds no measurements"),
        ([HEAD, GOOD, "resnet18,ResNet18,float"], "line 3: no device"),
        ([HEAD, GOOD.replace("0.9", "fast")], "line 2: ms is 'fast', and a latency is a positive number"),
        ([HEAD, GOOD.replace("0.9", "-1")], "line 2: ms is '-1'"),
        ([HEAD, GOOD.replace("0.9", "0")], "line 2: ms is '0'"),
        ([HEAD, GOOD.replace("0.9", "nan")], "line 2: ms is 'nan'"),
        ([HEAD, GOOD.replace("0.9", "inf")], "line 2: ms is 'inf'"),
        ([HEAD, GOOD.replace("0.9", "")], "line 2: ms is ''"),
        ([HEAD, "x" * 200_000 + GOOD], "is not a CSV file in UTF-8"),
    ],
)
def test_hostile_measurements_are_refused_with_their_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_rows(written(tmp_path, *lines))
    assert message in str(caught.value)


@settings(deadline=None)  # a busy machine is no error
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "data.csv"
    path.write_bytes(HEAD.encode() + b"\n" + content)
    try:
        rows = read_rows(path)
    except InvalidInput:
        return
    assert all(row.seconds > 0 for row in rows)


def test_the_command_says_what_it_cannot_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "cost", "--data", str(tmp_path / "none.csv"), "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["message"].startswith("cannot read the measurements")
    assert run(["bench", "cost", "--data", str(written(tmp_path, "\x00"))]) == 2


def test_no_public_model_is_listed_twice() -> None:
    listed = [(each.model, each.component) for each in PUBLIC]
    assert len(listed) == len(set(listed))


def program() -> Any:
    spec = importlib.util.spec_from_file_location("fit_cost", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_device_profiles_hold_what_the_result_file_says() -> None:
    made = program()
    for profile in made.PROFILES:
        assert list(find_device(profile).calibration) == made.profile_calibrations(made.read(), profile)


def test_calibrations_are_put_in_place_of_those_a_profile_had(tmp_path: Path) -> None:
    made = program()
    text = (Path(__file__).parents[2] / "device_profiles" / "sa8295p.toml").read_text(encoding="utf-8")
    [first, *_] = made.profile_calibrations(made.read(), "sa8295p")
    (tmp_path / "one.toml").write_text(made.with_calibrations(text, [first]), encoding="utf-8")
    found = find_device(str(tmp_path / "one.toml"))
    assert found.calibration == (first,)
    assert found.unit == find_device("sa8295p").unit


@pytest.mark.parametrize(
    ("page", "size"),
    [
        ({"Number of parameters": "11.7M", "Input resolution": "224x224"}, Size(11.7e6, 224 * 224)),
        ({"Number of parameters": "137M", "Input resolution": "1x128 (seqlen can vary)"}, Size(137e6, 128)),
        ({"Number of parameters": "91.9K", "Input resolution": "1 x 3 x 2 x 4"}, Size(91.9e3, 24)),
        ({"Number of parameters": "7.07B", "Input resolution": "none"}, None),
        ({"Number of parameters": "~74M", "Input resolution": "256 tokens"}, None),
        ({"Number of parameters": "1.2.3M", "Input resolution": "8x8"}, None),
        ({"Number of parameters": "0M", "Input resolution": "8x8"}, None),
        ({"Number of parameters": "1M", "Input resolution": "0x8"}, None),
        ({}, None),
    ],
)
def test_sizes_are_read_from_model_pages(page: dict[str, str], size: Size | None) -> None:
    assert size_of(page) == size


@pytest.mark.parametrize(("text", "message"), [("[1]", "holds no object of models"), ("{", "is not JSON")])
def test_hostile_pages_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pages.json").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read_sizes(tmp_path / "pages.json")
    with pytest.raises(InvalidInput, match="cannot read the model pages"):
        read_sizes(tmp_path / "none.json")


def test_times_that_are_powers_of_sizes_are_predicted_from_them() -> None:
    points = [
        Point(f"family {index % 5}", Size(1e6 * (index + 1), 1e4 * (index % 3 + 1)),
              1e-9 * (index + 1) ** 0.5 * 1e6 * (index % 3 + 1) ** 0.7)
        for index in range(20)
    ]  # fmt: skip
    found = held_out_scaling(points, splits=3)
    assert found is not None
    assert found.median < 1e-6
    assert held_out_scaling(points[:3], splits=3) is None
