"""Every error that is a user's to mend.

    QrobustError            exit code 2, printed as one line
    ├── RecipeError         a recipe, a target or an override
    ├── DataError           images or labels: missing, or not what was promised
    ├── ModelError          a network that is unknown, or that cannot be handled
    ├── CheckpointError     a checkpoint that is truncated, foreign or of another network
    ├── RunError            a run folder that cannot be used as asked
    ├── ExportError         a graph or target that cannot be written
    │   └── ParityError     a file that computes another function than its network; exit code 1: it was judged
    └── GraphError          a deployed graph that cannot be read or computed

An artifact that cannot be used raises `qrobust.runtime.ArtifactError`, which stands apart because
`runtime.py` travels without this package; it too carries `exit_code = 2`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 20  # in one line of an error
MOST_LETTERS = 200  # of a value in one


class QrobustError(Exception):
    """Base of all errors that a user can mend; the message is one printable line: expected, got, what to do."""

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))  # names out of a file may hold anything


class RecipeError(QrobustError):
    """A recipe, a target or an override is wrong."""


class DataError(QrobustError):
    """Images or labels are missing, or are not what was promised."""


class ModelError(QrobustError):
    """A network is unknown, or cannot be handled."""


class CheckpointError(QrobustError):
    """A checkpoint is truncated, foreign, or of another network."""


class RunError(QrobustError):
    """A run folder cannot be used as asked."""


class ExportError(QrobustError):
    """A graph or a target cannot be written."""


class ParityError(ExportError):
    """A file computes another function than its network: it was run and judged, so the exit code is 1."""

    exit_code = 1


class GraphError(QrobustError):
    """A deployed graph cannot be read, or holds what `OnnxModule` cannot compute."""


def printable(text: str) -> str:
    """Text from elsewhere with "?" for what is not printable: escapes could redraw a terminal, or fake a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def one_line(text: object) -> str:
    """`printable` text, its lines and tabs parted by blanks."""
    return printable(" ".join(str(text).replace("\t", " ").splitlines()))


def shown(value: object) -> str:
    """A value as an error names it: its repr, cut where it is long; its type where it has none."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or an integer of more digits than Python prints
        text = f"a value of {type(value).__name__}"
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or the known names if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f", … ({len(known)} in all)" if len(known) > MOST_NAMES else ""
    return f"; known: {', '.join(known[:MOST_NAMES])}{more}"
