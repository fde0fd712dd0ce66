"""Networks as a user's own, for images of 32 pixels: `model.name = "benches/small.py:small"`, or `:mobile`."""

from __future__ import annotations

import torchvision
from torch import nn


def small(in_channels: int = 3, classes: int = 10) -> nn.Module:
    """Five convolutions, from images (n, in_channels, h, w) to logits (n, classes)."""
    layers: list[nn.Module] = []
    width = in_channels
    for out, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def mobile() -> nn.Module:
    """torchvision's MobileNetV2 at a quarter of its width, from (n, 3, h, w) to (n, 10); strides of 4 less."""
    network: nn.Module = torchvision.models.mobilenet_v2(weights=None, num_classes=10, width_mult=0.25)
    for block in (network.features[0], network.features[2]):
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    return network
