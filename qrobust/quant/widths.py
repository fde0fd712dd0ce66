"""Which layer has how many bits: one width for the network, or patterns of module names with widths."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import ModelError, did_you_mean

BITS = (2, 3, 4, 5, 6, 7, 8)
FLOAT_BITS = 32
EDGE_BITS = 8
EVERY = "*"  # the network's n: for inner layers, and what `requantize` changes

Bits = int | Mapping[str, int]


@dataclass(frozen=True)
class Width:
    """Bits of a layer: of its weight (32 is float) and of what it reads; which of the two follow the network's n.

    edge: whether the layer is kept apart, and no pattern says otherwise.
    """

    weight: int
    reads: int
    weight_follows: bool
    reads_follow: bool
    edge: bool


def check_bits(bits: Bits, name: str = "bits") -> None:
    """Raises ModelError unless these are 2 to 8, or patterns with 2 to 8 or (for `bits`) 32."""
    if not isinstance(bits, Mapping):
        if not _is_width(bits):
            raise ModelError(f"expected {name} from 2 to 8 (32 is the float network), got {bits}")
        return
    for pattern, width in bits.items():
        if not _is_width(width) and not (width == FLOAT_BITS and name == "bits"):
            also = ", or 32 to stay in float" if name == "bits" else ""
            raise ModelError(f"{pattern}: expected {name} from 2 to 8{also}, got {width}")


def layer_widths(
    names: Collection[str],
    edges: Collection[str],
    *,
    bits: Bits,
    activation_bits: Bits | None,
    edge_layers: str,
) -> dict[str, Width]:
    """The width of every layer by its path. edges: those of `names` that are kept apart.

    The last pattern that matches decides. An edge layer leaves "*" aside: it is float or has 8 bits, as
    `edge_layers` says, unless another pattern names it. Raises ModelError for a pattern that decides nothing,
    and for an inner layer that none matches.
    """
    check_bits(bits)
    weights = _Patterns(bits, names, edges)
    reads = _Patterns({} if activation_bits is None else activation_bits, names, edges)
    if activation_bits is not None:
        check_bits(activation_bits, "activation_bits")
    return {name: _width(name, name in edges, weights, reads, edge_layers) for name in names}


def _width(name: str, edge: bool, weights: _Patterns, reads: _Patterns, edge_layers: str) -> Width:
    pattern, weight = weights.of(name, edge)
    read_pattern, read = reads.of(name, edge)
    if pattern is None and not edge:
        raise ModelError(f'expected bits for every layer, got none for {name}; begin with {{"*": 4}}')
    if pattern is None:
        weight = FLOAT_BITS if edge_layers == "float" else EDGE_BITS
    follows = pattern == EVERY
    return Width(
        weight=weight,
        reads=weight if read_pattern is None else read,
        weight_follows=follows,
        reads_follow=follows and read_pattern is None,
        edge=edge and pattern is None and read_pattern is None,
    )


class _Patterns:
    """Patterns with widths, each of which decides for one of `names` at least."""

    def __init__(self, bits: Bits, names: Collection[str], edges: Collection[str]) -> None:
        self.bits = dict(bits) if isinstance(bits, Mapping) else {EVERY: bits}
        deciding = {self.of(name, name in edges)[0] for name in names}
        for pattern in self.bits:
            if not any(_matches(name, pattern) for name in names):
                known = _known(pattern, names)
                raise ModelError(f"expected a layer's name or a pattern of them, got {pattern!r}{known}")
            if pattern not in deciding and pattern != EVERY:
                raise ModelError(
                    f"expected widths from general to special, got {pattern!r} before what overrides it all"
                )

    def of(self, name: str, edge: bool) -> tuple[str | None, int]:
        """The pattern that decides and its width, or None and 0."""
        matching = [p for p in self.bits if _matches(name, p) and not (edge and p == EVERY)]
        return (matching[-1], self.bits[matching[-1]]) if matching else (None, 0)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern is a layer's, or that of a module which holds it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _known(pattern: str, names: Collection[str]) -> str:
    holders = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    wild = {f"{holder}.*" for holder in holders}
    return did_you_mean(pattern, wild if wild and "*" in pattern else {*names, *holders})


def _is_width(bits: object) -> bool:
    return isinstance(bits, int) and bits in BITS
