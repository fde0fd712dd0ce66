"""The reference of functions, from their signatures and docstrings: what `import qrobust` makes public."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import qrobust

HEAD = """\
# Functions

What `import qrobust` gives, from its docstrings. [In Python](api.md) shows them at work, one after the other.
"""
WIDE = 100  # columns of a signature on one line


def reference() -> str:
    """The page: functions and classes by name, in the order of `qrobust.__all__`."""
    parts = [HEAD]
    for name in qrobust.__all__:
        found = getattr(qrobust, name)
        if callable(found):
            parts.append("\n".join(_entry(name, found)))
    return "\n".join(parts)


def _entry(name: str, found: Any) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"```text\n{_signature(name, found)}\n```\n"
    yield _prose(inspect.getdoc(found) or "")
    if inspect.isclass(found):
        yield from _methods(found)


def _methods(found: type) -> Iterator[str]:
    rows = [
        f"| `{_signature(name, one)}` | {_cell(inspect.getdoc(one))} |"
        for name, one in vars(found).items()
        if not name.startswith("_") and (inspect.isroutine(one) or isinstance(one, property)) and inspect.getdoc(one)
    ]
    if rows:
        yield "\n".join(["| member | |", "|---|---|", *rows, ""])


def _cell(doc: str | None) -> str:
    return (doc or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _signature(name: str, found: Any) -> str:
    """Without annotations, which the text states in words; one parameter a line where it is long."""
    found = found.__func__ if isinstance(found, classmethod | staticmethod) else found
    if not callable(found):
        return name
    signature = inspect.signature(found)
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    kept = [one for one in bare if one.name not in ("self", "cls")]
    text = name + re.sub(r" at 0x\w+", "", str(inspect.Signature(kept)))
    return text if len(text) <= WIDE else text.replace("(", "(\n    ", 1).replace(", ", ",\n    ")


def _prose(doc: str) -> str:
    """A docstring as Markdown: examples as blocks, angles as text."""
    parts = []
    for paragraph in doc.split("\n\n"):
        example = paragraph.lstrip().startswith(">>>")
        parts.append(f"```pycon\n{inspect.cleandoc(paragraph)}\n```" if example else _escaped(paragraph))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Marks of Markdown outside of code."""
    parts = text.split("`")
    return "`".join(part if at % 2 else part.replace("<", "&lt;").replace("*", "\\*") for at, part in enumerate(parts))
