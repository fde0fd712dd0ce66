"""What is said while work goes on: volume, a line each minute in a log, the rate of what was done here."""

import io

import pytest
from rich.console import Console

from qrobust import progress
from qrobust.progress import Bar, Log, bar, detail, note, set_volume, stamp, working

START = 1_772_312_399.5  # 2026-02-28T20:59:59Z


@pytest.fixture
def log(monkeypatch):
    """A log for standard error; volume as before afterwards."""
    console = Console(file=io.StringIO(), width=300)
    monkeypatch.setattr(progress, "console", console)
    yield console.file
    set_volume()


class Clock:
    """Seconds since the epoch that pass when they are told to."""

    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


def test_a_line_has_time_rate_and_time_left():
    clock = Clock()
    moving = Bar("train qm-32", 1000, "images", done=400)  # of an earlier process, which its rate is not of
    heard = Log(moving, clock)
    clock.now += 60
    assert heard.line() == "2026-02-28T21:00:59Z train qm-32: 400 of 1000 images, 0/s, unknown time left"
    moving.advance(120)
    moving.describe("train qm-32", "loss 0.5")
    clock.now += 60
    assert heard.line() == "2026-02-28T21:01:59Z train qm-32: 520 of 1000 images, 1/s, 0:08:00 left  loss 0.5"


def test_a_line_without_a_count():
    clock = Clock()
    heard = Log(Bar("export qm-4", 0, ""), clock)
    clock.now += 3723
    assert heard.line() == f"{stamp(START + 3723)} export qm-4: 1:02:03 so far"


def test_lines_come_each_minute_until_the_end(log, monkeypatch):
    clock, moving = Clock(), Bar("evaluate", 100, "images")
    heard, waits = Log(moving, clock), []
    monkeypatch.setattr(progress, "_under_way", [heard])

    def wait(seconds):
        waits.append(seconds)
        clock.now += seconds
        moving.advance(30)
        return len(waits) == 4

    heard.speak(wait)
    assert waits == [60] * 4
    lines = log.getvalue().splitlines()
    assert [line.split()[2:5] for line in lines] == [["30", "of", "100"], ["60", "of", "100"], ["90", "of", "100"]]


def test_a_step_speaks_for_the_work_around_it(log, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    with working("run"):
        while "run: " not in log.getvalue():
            pass
        with bar("evaluate", 10, "images"):
            log.truncate(log.seek(0))
            while log.getvalue().count("evaluate: ") < 3:
                pass
            said = log.getvalue()
    assert said.count("run: ") <= 1  # one that was under way
    log.truncate(log.seek(0))
    assert not progress._under_way


@pytest.mark.parametrize(
    ("volume", "said"),
    [({}, ["a note"]), ({"quiet": True}, []), ({"verbose": True}, ["a note", "a detail"])],
)
def test_volume(log, volume, said):
    set_volume(**volume)
    note("a note")
    detail("a detail")
    assert log.getvalue().splitlines() == said


def test_quiet_work_says_nothing(log, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    set_volume(quiet=True)
    with working("export"), bar("evaluate", 10, "images") as moving:
        moving.advance()
    assert log.getvalue() == ""
    assert moving.done == 1
