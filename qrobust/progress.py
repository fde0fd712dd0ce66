"""Progress for people: a bar with rate and time left on a terminal, a line with the time each minute in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .errors import one_line

FIRST = os.environ.get("RANK", "0") == "0"  # of several processes that torchrun starts, the first speaks
EVERY = 60.0  # seconds between the lines of long work in a log
console = Console(stderr=True, quiet=not FIRST)
_verbose = ContextVar("verbose", default=False)


def set_volume(*, quiet: bool = False, verbose: bool = False) -> None:
    """How much is said on stderr from now on besides errors: nothing, notes and progress, or details too."""
    console.quiet = quiet or not FIRST
    _verbose.set(verbose)


def plain(text: object, style: str = "") -> Text:
    """Text from elsewhere for a table or a line: no markup, no emoji, no control characters."""
    return Text(one_line(text), style)


def titled(title: str) -> Table:
    """A table under a title that may hold anything."""
    return Table(title=plain(title, "table.title"))


def note(text: str) -> None:
    """One line on stderr."""
    console.print(plain(text), soft_wrap=True)


def detail(text: str) -> None:
    """One line on stderr that is asked for by -v: why something was chosen or is done again."""
    if _verbose.get():
        note(text)


def stamp(seconds: float) -> str:
    """A time since the epoch, in UTC, as 2026-02-28T21:04:59Z."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


class _Rate(ProgressColumn):
    """Units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self.unit}/s")


class Bar:
    """A running count; `advance` moves it, `describe` sets the text before and behind it. total 0: nothing to count."""

    def __init__(self, label: str, total: int, unit: str, *, done: int = 0, screen: Progress | None = None) -> None:
        self.label, self.text, self.total, self.unit, self.done = label, "", total, unit, done
        self._screen = screen
        self._task = None if screen is None else screen.add_task("", total=total, completed=done, note="", label="")
        self.describe(label)

    def advance(self, count: int = 1) -> None:
        """Move forward."""
        self.done += count
        if self._screen is not None and self._task is not None:
            self._screen.advance(self._task, count)

    def describe(self, label: str, text: str = "") -> None:
        """Text before and behind the bar."""
        self.label, self.text = label, text
        if self._screen is not None and self._task is not None:
            self._screen.update(self._task, label=one_line(label), note=one_line(text))


class Log:
    """What a log says of work under way. clock: seconds since the epoch."""

    def __init__(self, moving: Bar, clock: Callable[[], float] = time.time) -> None:
        self.moving, self.clock = moving, clock
        self.start, self.before = clock(), moving.done

    def line(self) -> str:
        """The time, and how far the work is: its rate and the time left follow from what was done in this process."""
        moving, now = self.moving, self.clock()
        spent, done = max(now - self.start, 1e-9), moving.done - self.before
        if not moving.total:
            return f"{stamp(now)} {moving.label}: {timedelta(seconds=round(spent))} so far"
        left = str(timedelta(seconds=round((moving.total - moving.done) * spent / done))) if done else "unknown time"
        text = f"{moving.done} of {moving.total} {moving.unit}, {done / spent:.3g}/s, {left} left"
        return f"{stamp(now)} {moving.label}: {text}{f'  {moving.text}' if moving.text else ''}"

    def speak(self, wait: Callable[[float], bool]) -> None:
        """A line each minute, until `wait` (at most these seconds) says that the work is done."""
        while not wait(EVERY):
            if _under_way[-1:] == [self]:  # not while a step of this work speaks for itself
                note(self.line())


_under_way: list[Log] = []


@contextmanager
def _spoken(moving: Bar) -> Iterator[Bar]:
    """Inside, the log hears of the work each minute, also where a single step of it takes longer."""
    log, ended = Log(moving), Event()
    speaker = Thread(target=log.speak, args=(ended.wait,), daemon=True)
    _under_way.append(log)
    speaker.start()
    try:
        yield moving
    finally:
        ended.set()
        _under_way.remove(log)
        speaker.join()


def _in_log() -> bool:
    return not sys.stderr.isatty()


@contextmanager
def working(label: str) -> Iterator[None]:
    """Work without a count: a log hears of it each minute, a terminal does not."""
    if console.quiet or not _in_log():
        yield
        return
    with _spoken(Bar(label, 0, "")):
        yield


@contextmanager
def bar(label: str, total: int, unit: str, *, done: int = 0) -> Iterator[Bar]:
    """A bar of `total` units on a terminal, a line each minute elsewhere. done: units of an earlier process."""
    if console.quiet:
        yield Bar(label, total, unit, done=done)
        return
    if _in_log():
        with _spoken(Bar(label, total, unit, done=done)) as moving:
            yield moving
        return
    columns = (
        TextColumn("{task.fields[label]}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(label, total, unit, done=done, screen=progress)
