"""The report page in headless Chromium: it fetches nothing, its console stays empty, and it fits a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import full, plain
from test_page_hostile import HOSTILE

from edgekit.page.document import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")  # fmt: skip
# The page stands in a frame of a phone's width; its file may read the frame's size, which the page itself may not.
PHONE = """<!doctype html><iframe src="report.html" width="360" height="800"></iframe><script>
onload = () => { document.title = frames[0].document.documentElement.scrollWidth + " wide" }</script>"""


def browse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)


def opened(folder: Path) -> tuple[set[str], list[str]]:
    """What the page in `folder` asks the network for (the browser's own requests have no origin), and its console."""
    log = folder / "net.json"
    seen = browse(
        folder, f"--log-net-log={log}", "--enable-logging=stderr", "--dump-dom", (folder / "report.html").as_uri()
    )
    assert "Where ops run" in seen.stdout
    started = [event["params"] for event in json.loads(log.read_text(encoding="utf-8"))["events"] if "params" in event]
    asked = {made["url"] for made in started if made.get("initiator", "not an origin") != "not an origin"}
    return asked, re.findall(r".*CONSOLE.*", seen.stderr)


@pytest.mark.parametrize("name", [plain, lambda name: name + HOSTILE], ids=["plain", "hostile"])
def test_the_page_asks_for_nothing_and_says_nothing_on_the_console(tmp_path: Path, name: object) -> None:
    (tmp_path / "report.html").write_text(page(*full(name)), encoding="utf-8")  # type: ignore[arg-type]
    assert opened(tmp_path) == (set(), [])


def test_what_a_page_asks_for_and_what_its_policy_stops_would_be_seen(tmp_path: Path) -> None:
    spoilt = page(*full()).replace("</main>", "<script>1</script><img src='http://127.0.0.1:9/x.png'></main>")
    (tmp_path / "report.html").write_text(spoilt, encoding="utf-8")
    asked, console = opened(tmp_path)
    assert asked == set()
    assert sum("Content Security Policy" in line for line in console) >= 2
    (tmp_path / "report.html").write_text(spoilt.replace("Content-Security-Policy", "no-policy"), encoding="utf-8")
    assert opened(tmp_path)[0] == {"http://127.0.0.1:9/x.png"}


def test_nothing_sticks_out_at_a_phones_width(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page(*full(lambda name: name + 80 * "w")), encoding="utf-8")
    (tmp_path / "phone.html").write_text(PHONE, encoding="utf-8")
    seen = browse(tmp_path, "--allow-file-access-from-files", "--dump-dom", (tmp_path / "phone.html").as_uri())
    [wide] = re.findall(r"<title>(\d+) wide", seen.stdout)
    assert int(wide) <= 360
