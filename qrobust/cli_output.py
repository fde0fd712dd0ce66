"""What verbs print and write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

TABLE_WIDTH = 150  # columns, where output is no terminal


def console(result: Path | None = None) -> Console:
    """Where people read: standard error if the file of the result is standard output. Raises RunError for a file that
    cannot be written.
    """
    from rich.console import Console

    from .storage import expect_place, is_stdout

    if result is not None:
        expect_place(result)
    aside = result is not None and is_stdout(result)
    found = Console(stderr=aside)
    return found if found.is_terminal else Console(stderr=aside, width=TABLE_WIDTH)


def say(screen: Console, text: str) -> None:
    """One line, as it is."""
    from .errors import printable

    print(printable(text), file=screen.file)


def print_flags(screen: Console, name: str, result: dict[str, Any]) -> None:
    """A line for each flag of a result."""
    for flag in result["flags"] or ():  # which older results may not hold
        place = f" {flag['place']}" if "place" in flag else ""
        measured = f"{flag['measured']:.3g} > {flag['limit']:.3g}"
        say(screen, f"{name}{place} flag {flag['name']}: {measured}: {flag['reason']}; {flag['hint']}")


def write_result(path: Path | None, result: object) -> None:
    """As JSON, where a file is named."""
    if path is not None:
        from .storage import write_json

        write_json(path, result)
