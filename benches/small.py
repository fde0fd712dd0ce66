"""A plain network of five convolutions, as a user's own: `model.name = "benches/small.py:small"`."""

from __future__ import annotations

from torch import nn


def small(in_channels: int = 3, classes: int = 10) -> nn.Module:
    """From images (n, in_channels, h, w) to logits (n, classes)."""
    layers: list[nn.Module] = []
    width = in_channels
    for out, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
