"""What residual networks are made of: activations, shortcuts, blocks before and after activation."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError

Activation = Literal["relu", "hardtanh", "silu"]
Shortcut = Literal["A", "B"]


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
        self, in_channels: int, out_channels: int, stride: int, *, activation: Activation, shortcut: Shortcut = "B"
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


class Bottleneck(nn.Module):
    """As BasicBlock with three convolutions: 1 × 1 to a quarter of the outputs, 3 × 3 (with the stride), 1 × 1."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, activation: Activation) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = make_activation(activation)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = make_activation(activation)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.act3 = make_activation(activation)
        self.shortcut = _shortcut(in_channels, out_channels, stride, "B")

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) → (n, out, h/stride, w/stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        total: Tensor = self.act3(y + self.shortcut(x))
        return total


class PreActBlock(nn.Module):
    """conv(act(bn(conv(a)))) + x with a = act(bn(x)); where the shape changes, + conv(a) instead of x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, activation: Activation) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = make_activation(activation)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = make_activation(activation)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) → (n, out, h/stride, w/stride)."""
        a = self.act1(self.bn1(x))
        y: Tensor = self.conv2(self.act2(self.bn2(self.conv1(a))))
        return y + (x if self.shortcut is None else self.shortcut(a))


def make_activation(name: str) -> nn.Module:
    """A fresh activation module.

    relu; hardtanh as in the published study of robust quantised networks; silu, x·sigmoid(x), which is
    smooth and so gives attacks in training better gradients (Xie et al. 2020, arXiv 2006.14536).
    """
    known: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "hardtanh": nn.Hardtanh, "silu": nn.SiLU}
    if name not in known:
        raise ModelError(f"expected an activation of {', '.join(known)}, got {name!r}")
    return known[name]()


def initialise(module: nn.Module) -> None:
    """Convolutions ~ N(0, 2/(kernel area × out_channels)) (He et al. 2015, arXiv 1502.01852); nothing else."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _shortcut(in_channels: int, out_channels: int, stride: int, option: str) -> nn.Module:
    if option not in ("A", "B"):
        raise ModelError(f"expected shortcut 'A' or 'B', got {option!r}")
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
