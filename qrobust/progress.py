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
from rich.text import Text

# Of several processes that torchrun starts, the first speaks.
console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


def note(text: str) -> None:
    """One line on stderr."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


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
            self._progress.update(self._task, label=label, note=text)


@contextmanager
def bar(label: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar of `total` units on a terminal; silent elsewhere."""
    if console.quiet or not sys.stderr.isatty():
        yield Bar(None, total)
        return
    columns = (
        TextColumn("{task.fields[label]}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        moving = Bar(progress, total)
        moving.describe(label)
        yield moving
