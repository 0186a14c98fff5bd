"""The Pi 5's power chip: messages to the firmware, and what its answers add up to."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EdgekitError
from edgekit.runtimes.meters.pi5_pmic import Pi5Pmic, answer, question, rails_w

# The shape of a Pi 5's answer: twelve rails with both, and the 5 V input and the clock's battery with volts alone.
RAILS = {
    "3V7_WL_SW": (0.059, 3.61), "3V3_SYS": (0.0615, 3.3), "1V8_SYS": (0.1327, 1.817), "DDR_VDD2": (0.1396, 1.101),
    "DDR_VDDQ": (0.0098, 0.6037), "1V1_SYS": (0.1981, 1.103), "0V8_SW": (0.3416, 0.8029), "VDD_CORE": (5.0365, 0.8937),
    "3V3_DAC": (0.00006, 3.3), "3V3_ADC": (0.00055, 3.304), "0V8_AON": (0.0053, 0.7962), "HDMI": (0.0216, 4.9245),
}  # fmt: skip
ANSWER = "".join(
    [f"{rail + '_A':>20} current({k})={amperes:.8f}A\n" for k, (rail, (amperes, _)) in enumerate(RAILS.items())]
    + [f"{rail + '_V':>20} volt({k + 8})={volts:.8f}V\n" for k, (rail, (_, volts)) in enumerate(RAILS.items())]
    + ["             EXT5V_V volt(24)=4.92450000V\n              BATT_V volt(25)=0.00341880V\n"]
)


def test_every_rail_with_volts_and_amperes_counts_and_no_other() -> None:
    found = rails_w(ANSWER)
    assert set(found) == set(RAILS)
    for rail, (amperes, volts) in RAILS.items():
        assert found[rail] == pytest.approx(amperes * volts, rel=1e-6)
    assert 5 < sum(found.values()) < 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "EXT5V_V volt(24)=5.1V\n",
        'error=1 error_msg="Command not registered"',
        "X_A current(1)=1.2.3A\nX_V volt(2)=1V",
    ],
)
def test_boards_without_current_channels_say_so(text: str) -> None:
    with pytest.raises(EdgekitError, match="no rail with volts and amperes"):
        rails_w(text)


@given(st.text(max_size=300))
def test_any_text_gives_rails_or_a_plain_error(text: str) -> None:
    with contextlib.suppress(EdgekitError):
        assert all(watts >= 0 for watts in rails_w(text).values())


def test_a_question_is_a_mailbox_message() -> None:
    packet = question("pmic_read_adc")
    words = struct.unpack("<263I", packet)
    assert words[:6] == (1052, 0, 0x00030080, 1024, 0, 0)
    assert words[-1] == 0
    assert packet[24:].startswith(b"pmic_read_adc\0")


def test_an_answer_is_its_text_up_to_the_first_zero() -> None:
    packet = question("x")
    packet[24 : 24 + len(ANSWER[:500])] = ANSWER[:500].encode()
    assert answer(packet) == ANSWER[:500]


def test_a_command_that_is_refused_is_an_error() -> None:
    packet = question("pmic_read_adc")
    struct.pack_into("<I", packet, 20, 2)
    with pytest.raises(EdgekitError, match="refuses the command"):
        answer(packet)
    said = question('error=1 error_msg="Command not registered"')
    with pytest.raises(EdgekitError, match="Command not registered"):
        answer(said)


def test_what_it_does_not_see_is_said() -> None:
    info = Pi5Pmic().info
    assert {"cpu", "dram"} <= {*info.covers}
    assert {"npu", "usb", "5 V header and HATs"} <= {*info.excludes}


def test_other_boards_and_files_that_are_no_firmware_say_why(tmp_path: Path) -> None:
    gone = Pi5Pmic(device=str(tmp_path / "vcio")).available()
    assert gone.reason == f"there is no {tmp_path / 'vcio'}"
    (tmp_path / "vcio").write_text("")
    other = Pi5Pmic(device=str(tmp_path / "vcio")).available()
    assert not other.ok
    assert "Pi 5" in (other.enable or "")
