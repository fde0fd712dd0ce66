"""Residual networks for small images (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .registry import register

Activation = Literal["relu", "hardtanh"]
Shortcut = Literal["A", "B"]
WIDTHS = (16, 32, 64)


class PadShortcut(nn.Module):
    """Option A: every second pixel, missing channels filled with zeros on both sides; no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) → (n, out, ceil(h/stride), ceil(w/stride))."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """act(bn(conv(act(bn(conv(x))))) + shortcut(x)), convolutions 3 × 3."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, activation: Activation, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = make_activation(activation)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = make_activation(activation)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) → (n, out, h/stride, w/stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        total: Tensor = self.act2(y + self.shortcut(x))
        return total


class ResNet(nn.Module):
    """Depth 6·blocks + 2: three stages of `blocks` basic blocks at 16, 32 and 64 channels.

    Input (n, in_channels, h, w) in [0,1]; output logits (n, classes).
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        blocks: int,
        *,
        in_channels: int,
        classes: int,
        activation: Activation = "relu",
        shortcut: Shortcut = "B",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        self.act = make_activation(activation)
        inputs = (WIDTHS[0], *WIDTHS[:-1])
        for stage, (before, width) in enumerate(zip(inputs, WIDTHS, strict=True), start=1):
            first = BasicBlock(before, width, 1 if stage == 1 else 2, activation, shortcut)
            rest = [BasicBlock(width, width, 1, activation, shortcut) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(WIDTHS[-1], classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) in [0,1] → logits (n, classes)."""
        x = self.act(self.bn(self.conv(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def make_activation(name: str) -> nn.Module:
    """A fresh activation module: relu, or hardtanh as in the published study of robust quantised networks."""
    known: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "hardtanh": nn.Hardtanh}
    if name not in known:
        raise ModelError(f"expected an activation of {', '.join(known)}, got {name!r}")
    return known[name]()


def _shortcut(in_channels: int, out_channels: int, stride: int, option: str) -> nn.Module:
    if option not in ("A", "B"):
        raise ModelError(f"expected shortcut 'A' or 'B', got {option!r}")
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@register
def resnet8(*, in_channels: int, classes: int, activation: Activation = "relu", shortcut: Shortcut = "B") -> nn.Module:
    """8 layers, 78 thousand parameters: for 8 × 8 digits."""
    return ResNet(1, in_channels=in_channels, classes=classes, activation=activation, shortcut=shortcut)


@register
def resnet20(*, in_channels: int, classes: int, activation: Activation = "relu", shortcut: Shortcut = "B") -> nn.Module:
    """20 layers, 272 thousand parameters: the network of the Fourier-domain study."""
    return ResNet(3, in_channels=in_channels, classes=classes, activation=activation, shortcut=shortcut)
