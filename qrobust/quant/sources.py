"""Which quantiser a layer reads from."""

from __future__ import annotations

from torch import fx, nn

from ._brevitas import QuantIdentity
from .quantizers import Quantizer, quantizers
from .rules import keeps_grid


def source_quantizer(node: fx.Node, modules: dict[str, nn.Module]) -> Quantizer | None:
    """The quantiser that made a node's input, found upwards through all that leaves values on their grid."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        module = modules.get(str(node.target))
        if isinstance(module, QuantIdentity):
            return next(quantizers(module))
        if not keeps_grid(node, module):
            return None
    return None
