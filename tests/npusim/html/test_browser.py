"""The report and the timeline in Debian's Chromium: they show something, complain of nothing and ask no network."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from npusim.html.report import write_report
from npusim.trace.write import write_trace

pytestmark = pytest.mark.slow


def render(page: Path, folder: Path) -> tuple[Image.Image, str, list[str]]:
    """A screenshot, the browser's log, and the addresses that were asked for on behalf of pages."""
    browser = shutil.which("chromium")
    assert browser, "chromium is missing: make chromium"
    shot, net = folder / "shot.png", folder / "net.json"
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--no-first-run", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", f"--log-net-log={net}", "--window-size=1280,5600",
        "--virtual-time-budget=3000", f"--screenshot={shot}", page.resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    record = json.loads(net.read_text())
    start = record["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = {
        event["params"]["url"]
        for event in record["events"]
        if event["type"] == start
        and "url" in event.get("params", {})
        # What the browser asks for by itself, its clock and its lists, has no page behind it.
        and event["params"].get("initiator") != "not an origin"
    }
    with Image.open(shot) as image:
        return image.convert("RGB"), done.stderr, sorted(url for url in asked if url.startswith(("http", "ws", "ftp")))


def check(page: Path, folder: Path, least_colours: int) -> Image.Image:
    folder.mkdir()
    image, log, asked = render(page, folder)
    assert ":CONSOLE" not in log, log
    assert asked == []
    assert len(image.getcolors(1 << 24) or []) > least_colours
    return image


def test_report(tiny_folder, tmp_path):
    page = write_report(tiny_folder, tmp_path / "report")
    image = check(page, tmp_path / "browser", 500)
    # Every part of the page down to the last figure shows something.
    bands = [image.crop((0, top, image.width, top + 400)) for top in range(0, 4000, 400)]
    assert all(len(band.getcolors(1 << 24) or []) > 20 for band in bands)


def test_timeline(tiny_folder, tmp_path):
    write_trace(tiny_folder, tmp_path / "t.pftrace", page=True)
    check(tmp_path / "t.html", tmp_path / "browser", 8)


def test_the_check_sees_complaints_and_requests(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<body><script>console.error("no")</script><img src="http://127.0.0.1:9/x.png">')
    (tmp_path / "browser").mkdir()
    _, log, asked = render(page, tmp_path / "browser")
    assert ":CONSOLE" in log
    assert asked == ["http://127.0.0.1:9/x.png"]
