"""Read what the kernel and small tools say of a machine; None where they say nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SYS = Path("/sys")
PATIENCE_S = 5.0


def read_text(path: Path) -> str | None:
    """The text of a small file without the space around it."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def read_number(path: Path, scale: float = 1.0) -> float | None:
    """The whole number in a file, times `scale`."""
    text = read_text(path)
    return float(text) * scale if text and text.removeprefix("-").isdecimal() else None


def folders(root: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing where there is none that may be read."""
    try:
        return sorted(root.iterdir())
    except OSError:
        return []


def ask_tool(*command: str) -> str | None:
    """What a command prints, where it is installed, answers in time and does not fail."""
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(
            command, capture_output=True, check=True, timeout=PATIENCE_S, encoding="utf-8", stdin=subprocess.DEVNULL
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
