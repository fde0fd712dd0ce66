"""The state of a network while an attack works on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .folding import folded


@runtime_checkable
class Holdable(Protocol):
    """A module whose result depends on weights alone and can be kept while they do not change."""

    def hold(self, on: bool) -> None:
        """Keep the next result until switched off."""


@contextmanager
def crafting(model: nn.Module, *, training: bool = False, fold: bool = True) -> Iterator[None]:
    """Inside: eval mode (or train mode), no gradients for parameters, each weight computed once.

    Gradients pass to images even where the caller switched them off (`no_grad`, `inference_mode`): an attack without
    them would find nothing, and look like robustness. Images from inference mode must be copied: see `ordinary`.
    fold: in eval mode, batch-norms are folded into the convolutions before them, which moves logits by rounding.
    Leaves every module's mode and every parameter's `requires_grad` as found, also after an error.
    """
    modes = [(module, module.training) for module in model.modules()]
    holders = [module for module in model.modules() if isinstance(module, Holdable)]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        _replace_inference(stack, model)
        stack.callback(_restore, modes)
        for parameter in [parameter for parameter in model.parameters() if parameter.requires_grad]:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        model.train(training)
        if fold and not training:
            stack.enter_context(folded(model))
        for holder in holders:
            holder.hold(True)
            stack.callback(holder.hold, False)
        stack.enter_context(parametrize.cached())
        yield


def ordinary(*tensors: Tensor) -> tuple[Tensor, ...]:
    """These tensors, copied where they come from inference mode: no gradient may pass those. Call inside `crafting`."""
    return tuple(tensor.clone() if tensor.is_inference() else tensor for tensor in tensors)


def input_gradient(loss: Tensor, x: Tensor) -> Tensor:
    """`raw_gradient` with 0 for NaN and the largest number for infinity, so that the other pixels lead the attack."""
    return raw_gradient(loss, x).nan_to_num()


def raw_gradient(loss: Tensor, x: Tensor) -> Tensor:
    """∂loss/∂x, zero where the network cuts the way back (rounding, detached parts): a doubt will say so."""
    if not loss.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _replace_inference(stack: ExitStack, model: nn.Module) -> None:
    """Copies stand in for weights and buffers that were made in inference mode."""
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None and value.is_inference():
                    stack.callback(table.__setitem__, name, value)  # type: ignore[arg-type]
                    copied = value.detach().clone()
                    table[name] = nn.Parameter(copied, False) if isinstance(value, nn.Parameter) else copied  # type: ignore[assignment]


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
