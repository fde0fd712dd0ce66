"""A model card in the form that model hubs read: YAML for programs, Markdown for people."""

from __future__ import annotations

import json

from .. import __version__
from ..errors import printable
from .collect import Collected
from .page import render, settings, told_threat
from .tables import columns, rows
from .words import cards, flags


def card(run: Collected) -> str:
    """The card of a run as Markdown with YAML in front; the license is left to the user."""
    accuracies = [(width, rows(width)) for width in run.widths]
    return render(
        "card.md.j2",
        escaped=False,
        run=run,
        version=__version__,
        threat=told_threat(run),
        cards=cards(run),
        columns=columns([row for _, part in accuracies for row in part]),
        accuracies=accuracies,
        flags=flags(run),
        settings=settings,
        quoted=quoted,
        number=float,
        plain=plain,
    )


def plain(text: object) -> str:
    """Text that is no Markdown and stays in its cell of a table: on one line, marks of Markdown and HTML escaped."""
    line = printable(" ".join(str(text).split()))
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&~" else letter for letter in line)


def quoted(text: object) -> str:
    """A YAML string, which a JSON string is where no letter needs two escapes."""
    return printable(json.dumps(str(text), ensure_ascii=False))
