"""What a network's first layer hands on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .accuracy import as_placed, check_model

LAYERS = (nn.Conv2d, nn.modules.batchnorm._NormBase)


@torch.no_grad()
def first_activation(model: nn.Module, x: Tensor) -> Tensor:
    """act(bn(conv(x))) of the first convolution, (n, c, h, w) ("A Fourier Domain-based Study", 3.1.3).

    That is what the first module gives that begins behind it and holds neither convolution nor batch-norm; where none
    does before the second convolution (an activation that is a function), what the last module gave.
    x: images (n, c, h, w) in [0,1]. Raises ModelError for a network in train mode or without a convolution.
    """
    check_model(model)
    seen = _Seen()
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(seen.begin))
        handles.append(module.register_forward_hook(seen.end))
    try:
        model(as_placed(x))
    finally:
        for handle in handles:
            handle.remove()
    if seen.output is None:
        raise ModelError("expected a network with a convolution, got one without; its first layer has no frequencies")
    return seen.output


class _Seen:
    """Listens to one pass, from the first convolution to its activation."""

    def __init__(self) -> None:
        self.conv: nn.Module | None = None
        self.activation: nn.Module | None = None
        self.output: Tensor | None = None
        self.done = False

    def begin(self, module: nn.Module, inputs: Any) -> None:  # noqa: ARG002, a hook's signature
        """The convolution, the activation behind it, or a second convolution: then there was none."""
        if isinstance(module, nn.Conv2d):
            self.done = self.done or (self.conv is not None and self.activation is None)
            self.conv = self.conv or module
        elif self.output is not None and self.activation is None and _may_be_activation(module):
            self.activation = module

    def end(self, module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002
        """What comes last counts, up to the activation; what runs inside one (its quantisers) ends before it."""
        behind = self.output is not None or module is self.conv
        if self.done or not behind or not isinstance(output, Tensor) or output.dim() != 4:
            return
        self.output, self.done = output, module is self.activation


def _may_be_activation(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity) and not any(isinstance(part, LAYERS) for part in module.modules())
