"""The page in a real browser, where one is installed: no errors, all is seen, nothing sticks out, all can be read."""

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from qrobust.report import write
from qrobust.storage import write_json

from ..conftest import evidence
from .conftest import share

BROWSER = evidence("browser")
SIZES = (400, 1400)

LOOK = Path(__file__).with_name("look.js").read_text()


def browse(*arguments, timeout=120):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def errors(done):
    """What the page wrote to the console."""
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def path(run):
    """A report with all its parts."""
    attack = {"attacks": {"square-500": share(0.3, 0.2, 0.4)}, "worst_case": share(0.2, 0.1, 0.3)}
    write_json(run / "qm-4" / "attack.json", attack)
    return write(run)


def looked(path, *arguments):
    frames = "".join(
        f'<iframe style="border:0" width="{size}" height="900" srcdoc="{html.escape(path.read_text())}"></iframe>'
        for size in SIZES
    )
    around = path.with_name("around.html")
    around.write_text(f'<!DOCTYPE html><meta charset="utf-8">{frames}<pre id="found"></pre><script>{LOOK}</script>')
    done = browse("--virtual-time-budget=10000", "--window-size=2000,1000", "--dump-dom", *arguments, around.as_uri())
    assert errors(done) == []
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_is_seen_and_can_be_read(path, scheme):
    found = looked(path, f"--blink-settings=preferredColorScheme={int(scheme == 'light')}")
    assert [int(size) for size in found] == list(SIZES)
    for size, seen in found.items():
        assert seen["drawings"] > 5, size
        assert seen["texts"] > 150, size
        assert (seen["hidden"], seen["overflow"], seen["faint"], seen["small"]) == (0, 0, [], []), size
        assert (max(seen["background"]) < 80) == (scheme == "dark")


def test_the_console_stays_silent(path):
    done = browse("--dump-dom", path.as_uri())
    assert "Export broken: QM-4" in done.stdout
    assert errors(done) == []
