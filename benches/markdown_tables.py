"""Tables in Markdown, and numbers as they stand in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOT_YET = "Not measured yet."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; columns behind the first are numbers."""
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def probability(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"
