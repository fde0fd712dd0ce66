"""Progress for people: a bar with rate and time left on a terminal, one line a step where output is piped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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

# Of several processes that torchrun starts, the first speaks.
console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


def plain(text: object, style: str = "") -> Text:
    """Text from elsewhere for a table or a line: no markup, no emoji, no control characters."""
    return Text(one_line(text), style)


def titled(title: str) -> Table:
    """A table under a title that may hold anything."""
    return Table(title=plain(title, "table.title"))


def note(text: str) -> None:
    """One line on stderr."""
    console.print(plain(text), soft_wrap=True)


class _Rate(ProgressColumn):
    """Units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self.unit}/s")


class Bar:
    """A running count; `advance` moves it, `describe` sets the text behind it."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, note="", label="") if progress else None

    def advance(self, count: int = 1) -> None:
        """Move forward."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count)

    def describe(self, label: str, text: str = "") -> None:
        """Text before and behind the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, label=one_line(label), note=one_line(text))


@contextmanager
def bar(label: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar of `total` units on a terminal; silent elsewhere."""
    if console.quiet or not sys.stderr.isatty():
        yield Bar(None, total)
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
        moving = Bar(progress, total)
        moving.describe(label)
        yield moving
