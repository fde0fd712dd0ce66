"""What training and the artifact need to know of a quantised network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .layers import FAT
from .quantizers import Quantizer

# Learning rates relative to the weights' (0.1 and 0.02 at 0.04) and weight decay of clips, as FAT trains.
ACTIVATION_CLIP_RATE = 2.5
WEIGHT_CLIP_RATE = 0.5
CLIP_WEIGHT_DECAY = 1e-4


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: weights; activation clips; weight clips and FAT mixing."""
    activation: list[nn.Parameter] = []
    weight: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, Quantizer) and not module.fixed:
            (activation if module.masked else weight).append(module.clip)
        elif isinstance(module, FAT) and module.mixing.requires_grad:
            weight.append(module.mixing)
    special = {id(parameter) for parameter in (*activation, *weight)}
    rest = [p for p in model.parameters() if id(p) not in special and p.requires_grad]
    groups = [
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
        {"params": activation, "lr": lr * ACTIVATION_CLIP_RATE, "weight_decay": CLIP_WEIGHT_DECAY},
        {"params": weight, "lr": lr * WEIGHT_CLIP_RATE, "weight_decay": CLIP_WEIGHT_DECAY},
    ]
    return [group for group in groups if group["params"]]


def latent_weights(model: nn.Module) -> list[nn.Parameter]:
    """What weight perturbation moves: weights of two dimensions or more, before FAT and quantisers."""
    return [p for p in parameter_groups(model, lr=1, weight_decay=0)[0]["params"] if p.dim() > 1]


def bits_per_layer(model: nn.Module) -> dict[str, int]:
    """Width of every convolution's and linear layer's weight by module path; 32 is float."""
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            held = [m.bits for m in module.modules() if isinstance(m, Quantizer) and not m.masked]
            widths[name] = held[0] if held else 32
    return widths


@torch.no_grad()
def mask_statistics(model: nn.Module) -> dict[str, dict[str, float]]:
    """Least, mean, greatest and standard deviation of every FAT mask, by layer; empty without masks."""
    found = {}
    for name, layer in model.named_modules():
        fat = _mask_of(layer)
        if fat is not None and fat.form != "identity":
            mask = fat.mask(layer.parametrizations.weight.original)
            numbers = {"min": mask.min(), "mean": mask.mean(), "max": mask.max(), "std": mask.std()}
            found[name] = {key: round(float(value), 6) for key, value in numbers.items()}
    return found


def _mask_of(layer: nn.Module) -> FAT | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return next((p for p in layer.parametrizations.weight if isinstance(p, FAT)), None)  # type: ignore[union-attr]
