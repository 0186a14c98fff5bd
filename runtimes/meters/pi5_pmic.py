"""Raspberry Pi 5: volts and amperes of the power chip's rails, sampled.

The firmware answers `pmic_read_adc` through /dev/vcio, as vcgencmd asks it; starting that program for every sample
would slow the work down. The 5 V input has a voltage and no current: nothing behind it, a HAT or USB, is seen.
Sources: raspberrypi/utils vcgencmd; ml-energy/zeus#273.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct

from edgekit.energy import HERE_IT_IS, Availability, Counter, MeterInfo, not_here, require
from edgekit.errors import EdgekitError
from edgekit.sampling import Sampler
from edgekit.types import Value

PERIOD_S = 0.1
GENCMD, TEXT_BYTES, HEADER_BYTES = 0x00030080, 1024, 24
MAILBOX = 0xC0000000 | struct.calcsize("P") << 16 | 100 << 8  # _IOWR(100, 0, char *)
LINE = re.compile(r"^\s*(\S+)_([AV]) (?:current|volt)\(\d+\)=(\d+\.?\d*)[AV]\s*$", re.MULTILINE)


class Pi5Pmic(Value, frozen=True, kw_only=True):
    """The rails with a current channel, added up."""

    device: str = "/dev/vcio"

    @property
    def info(self) -> MeterInfo:
        """The chip and its memory; not the board."""
        return MeterInfo(
            id="pi5_pmic",
            provenance="measured.sampled",
            domains=("pmic rails",),
            covers=("cpu", "gpu", "dram", "board rails with a current channel"),
            excludes=("npu", "usb", "5 V header and HATs", "supply loss"),
            update_period_s=PERIOD_S,
            resolution_j=1e-3 * PERIOD_S,
            privileges="group video",
        )

    def available(self) -> Availability:
        """Whether the firmware answers and has currents."""
        try:
            rails_w(ask(self.device, "pmic_read_adc"))
        except FileNotFoundError:
            return not_here(f"there is no {self.device}", "it is part of a Raspberry Pi")
        except PermissionError:
            return not_here(f"{self.device} may not be opened", "sudo usermod -aG video $USER, then log in again")
        except (OSError, EdgekitError) as error:
            return not_here(str(error), "only the Pi 5 measures current; other models need an external meter")
        return HERE_IT_IS

    def open(self) -> Counter:
        """Start to sample."""
        require("pi5_pmic", self.available())
        return Sampler(self.info, self._watts)

    def _watts(self) -> dict[str, float]:
        return {"pmic rails": sum(rails_w(ask(self.device, "pmic_read_adc")).values())}


def rails_w(answer: str) -> dict[str, float]:
    """Watts of every rail that reports both volts and amperes. Raises `EdgekitError` when none does."""
    found: dict[str, dict[str, float]] = {}
    for rail, unit, value in LINE.findall(answer):
        found.setdefault(rail, {})[unit] = float(value)
    watts = {rail: both["A"] * both["V"] for rail, both in found.items() if len(both) == 2}
    if not watts:
        raise EdgekitError("the firmware names no rail with volts and amperes")
    return watts


def ask(device: str, command: str) -> str:
    """What the firmware answers to a command of vcgencmd. Raises `OSError` where there is no firmware to ask."""
    packet = question(command)
    handle = os.open(device, os.O_RDWR)
    try:
        fcntl.ioctl(handle, MAILBOX, packet, True)
    finally:
        os.close(handle)
    return answer(packet)


def question(command: str) -> bytearray:
    """A mailbox message: sizes and tag, room for 1024 bytes of text, and an end tag of zeros."""
    packet = bytearray(HEADER_BYTES + TEXT_BYTES + 4)
    struct.pack_into("<5I", packet, 0, len(packet), 0, GENCMD, TEXT_BYTES, 0)
    packet[HEADER_BYTES : HEADER_BYTES + len(command)] = command.encode()
    return packet


def answer(packet: bytes | bytearray) -> str:
    """The text of a mailbox message that came back. Raises `EdgekitError` for a command that the firmware refuses."""
    (failed,) = struct.unpack_from("<I", packet, HEADER_BYTES - 4)
    said = bytes(packet[HEADER_BYTES:-4]).partition(b"\0")[0].decode(errors="replace")
    if failed or said.startswith("error="):
        raise EdgekitError(f"the firmware refuses the command: {said or failed}")
    return said


METER = Pi5Pmic
