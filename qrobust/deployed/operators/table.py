"""The table of operators: (domain, name) → function of a node and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..node import Node, shown

# (node, one tensor per input, None for one left out) → the first outputs: a tensor or a tuple of them.
Function = Callable[..., Any]
CONTRIB = "com.microsoft"
TABLE: dict[tuple[str, str], Function] = {}


def operator(*names: str, domain: str = "") -> Callable[[Function], Function]:
    """Enter a function of (node, inputs) under these names."""

    def enter(function: Function) -> Function:
        TABLE.update({(domain, name): function for name in names})
        return function

    return enter


def plain(*names: str) -> Callable[[Function], Function]:
    """Enter a function of the inputs alone under these names."""

    def enter(function: Function) -> Function:
        operator(*names)(lambda _, *inputs: function(*inputs))
        return function

    return enter


def find(node: Node) -> Function | None:
    """The function of a node's operator, or None if it is not covered."""
    return TABLE.get((node.domain, node.op))


def title(domain: str, name: str) -> str:
    """The operator's name as errors print it."""
    return shown(f"{domain}::{name}" if domain else name)
