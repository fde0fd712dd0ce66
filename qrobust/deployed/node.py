"""One operation of a graph, with its settings as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .rounding import Backward

LONGEST_NAME, LONGEST_REASON = 60, 160  # in an error


@dataclass(frozen=True)
class Node:
    """An operator as the file states it: "" in `inputs` is one left out.

    opset: of the operator's own domain. kinds and numbers say what is known of each input before any image is:
    the ONNX element type of a constant, and the value of a constant that is one number; None of others. whole: the
    file computes on integers here, which floats stand for.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[int | None, ...] = ()
    numbers: tuple[float | None, ...] = ()
    whole: bool = False
    backward: Backward = field(default_factory=Backward)

    def __str__(self) -> str:
        return f"{shown(self.op)} (node {shown(self.name)})"

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(self.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """An attribute that is a list of integers, or None."""
        value = self.attributes.get(name)
        return None if value is None else [int(one) for one in value]

    def kind(self, index: int) -> int | None:
        """The element type of a constant input."""
        return self.kinds[index] if index < len(self.kinds) else None

    def constant(self, index: int) -> float | None:
        """A constant input that is one number."""
        return self.numbers[index] if index < len(self.numbers) else None


def shown(name: str, longest: int = LONGEST_NAME) -> str:
    """A name from a file, safe to print on one line."""
    name = name if len(name) <= longest else f"{name[:longest]}…"
    return name if name.isprintable() else repr(name)


def reason(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return shown(" ".join(str(error).split()), LONGEST_REASON) or type(error).__name__
