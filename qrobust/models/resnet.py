"""Residual networks: the papers' small ones, deep ones for any image, pre-activation and wide ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .registry import register

Block = Callable[[int, int, int], nn.Module]  # in_channels, out_channels, stride
Stem = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class Stages:
    """Stage i has counts[i] blocks and gives widths[i + 1] channels; widths[0] is what the stem gives.

    From the second stage on, the first block halves height and width.
    """

    block: Block
    counts: tuple[int, ...]
    widths: tuple[int, ...]

    def build(self) -> Iterator[nn.Sequential]:
        """The stages, in the order of execution."""
        for stage, count in enumerate(self.counts):
            before, width = self.widths[stage : stage + 2]
            first = self.block(before, width, 1 if stage == 0 else 2)
            rest = [self.block(width, width, 1) for _ in range(count - 1)]
            yield nn.Sequential(first, *rest)


class StagedNetwork(nn.Module):
    """Holds stages as `layer1`, `layer2`, …, and a classifier behind mean pooling; subclasses bring the stem."""

    def add_stages(self, stages: Stages) -> None:
        """Append the stages to what is there."""
        self.layers = tuple(f"layer{number}" for number in range(1, len(stages.counts) + 1))
        for name, layer in zip(self.layers, stages.build(), strict=True):
            self.add_module(name, layer)

    def add_classifier(self, width: int, classes: int) -> None:
        """Append mean pooling over height and width, and a linear layer."""
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)

    def run_stages(self, x: Tensor) -> Tensor:
        """(n, widths[0], h, w) → (n, widths[-1], h/2^(stages - 1), w/2^(stages - 1)), rounded up."""
        for name in self.layers:
            x = self.get_submodule(name)(x)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """(n, width, h, w) → logits (n, classes)."""
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def check_stem(stem: str) -> None:
    """Raises ModelError unless `stem` is one of `Stem`."""
    if stem not in ("cifar", "imagenet"):
        raise ModelError(f"expected stem 'cifar' or 'imagenet', got {stem!r}")


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


SMALL_WIDTHS = (16, 16, 32, 64)
BASIC_WIDTHS = (64, 64, 128, 256, 512)
BOTTLENECK_WIDTHS = (64, 256, 512, 1024, 2048)


class ResNet(StagedNetwork):
    """A stem (convolution, batch-norm, activation), stages, mean pooling and a classifier.

    Input (n, in_channels, h, w) in [0,1]; output logits (n, classes).
    stem: "cifar" is a 3 × 3 convolution that keeps height and width; "imagenet" is a 7 × 7 one with
    stride 2 and a 3 × 3 max-pool with stride 2, so that the stages see a quarter of each.
    Raises ModelError for an unknown stem or activation.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        in_channels: int,
        classes: int,
        activation: Activation = "relu",
        stem: Stem = "cifar",
    ) -> None:
        super().__init__()
        check_stem(stem)
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv = nn.Conv2d(in_channels, stages.widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(stages.widths[0])
        self.act = make_activation(activation)
        self.shrink: nn.Module | None = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else None
        self.add_stages(stages)
        self.add_classifier(stages.widths[-1], classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) in [0,1] → logits (n, classes)."""
        x = self.act(self.bn(self.conv(x)))
        if self.shrink is not None:
            x = self.shrink(x)
        return self.classify(self.run_stages(x))


@register
def resnet8(*, in_channels: int, classes: int, activation: Activation = "relu", shortcut: Shortcut = "B") -> nn.Module:
    """8 layers, 78 thousand parameters: for 8 × 8 digits."""
    block = partial(BasicBlock, activation=activation, shortcut=shortcut)
    stages = Stages(block, (1, 1, 1), SMALL_WIDTHS)
    return ResNet(stages, in_channels=in_channels, classes=classes, activation=activation)


@register
def resnet20(*, in_channels: int, classes: int, activation: Activation = "relu", shortcut: Shortcut = "B") -> nn.Module:
    """20 layers, 272 thousand parameters: the network of the Fourier-domain study."""
    block = partial(BasicBlock, activation=activation, shortcut=shortcut)
    stages = Stages(block, (3, 3, 3), SMALL_WIDTHS)
    return ResNet(stages, in_channels=in_channels, classes=classes, activation=activation)


@register
def resnet18(*, in_channels: int, classes: int, activation: Activation = "relu", stem: Stem = "cifar") -> nn.Module:
    """18 layers, 11.2 million parameters: the usual network of adversarial training on CIFAR-10."""
    stages = Stages(partial(BasicBlock, activation=activation), (2, 2, 2, 2), BASIC_WIDTHS)
    return ResNet(stages, in_channels=in_channels, classes=classes, activation=activation, stem=stem)


@register
def resnet34(*, in_channels: int, classes: int, activation: Activation = "relu", stem: Stem = "cifar") -> nn.Module:
    """34 layers, 21.3 million parameters."""
    stages = Stages(partial(BasicBlock, activation=activation), (3, 4, 6, 3), BASIC_WIDTHS)
    return ResNet(stages, in_channels=in_channels, classes=classes, activation=activation, stem=stem)


@register
def resnet50(*, in_channels: int, classes: int, activation: Activation = "relu", stem: Stem = "cifar") -> nn.Module:
    """50 layers in bottlenecks, 23.5 million parameters."""
    stages = Stages(partial(Bottleneck, activation=activation), (3, 4, 6, 3), BOTTLENECK_WIDTHS)
    return ResNet(stages, in_channels=in_channels, classes=classes, activation=activation, stem=stem)


@register
def resnet152(*, in_channels: int, classes: int, activation: Activation = "relu", stem: Stem = "cifar") -> nn.Module:
    """152 layers in bottlenecks, 58.2 million parameters."""
    stages = Stages(partial(Bottleneck, activation=activation), (3, 8, 36, 3), BOTTLENECK_WIDTHS)
    return ResNet(stages, in_channels=in_channels, classes=classes, activation=activation, stem=stem)


class PreActResNet(StagedNetwork):
    """A 3 × 3 convolution, stages, batch-norm and activation, mean pooling and a classifier.

    Input (n, in_channels, h, w) in [0,1]; output logits (n, classes). Raises ModelError for an unknown
    activation. Source: He et al. 2016, arXiv 1603.05027; as in code for adversarial training, the last
    stage is normalised and activated. Convolutions start as TRADES's do; the classifier starts with
    PyTorch's biases, where TRADES has zeros.
    """

    def __init__(self, stages: Stages, *, in_channels: int, classes: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, stages.widths[0], 3, 1, 1, bias=False)
        self.add_stages(stages)
        self.bn = nn.BatchNorm2d(stages.widths[-1])
        self.act = make_activation(activation)
        self.add_classifier(stages.widths[-1], classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) in [0,1] → logits (n, classes)."""
        x = self.run_stages(self.conv(x))
        return self.classify(self.act(self.bn(x)))


@register
def preactresnet18(*, in_channels: int, classes: int, activation: Activation = "relu") -> nn.Module:
    """18 layers, 11.2 million parameters: the network of the study of robust overfitting (arXiv 2002.11569)."""
    stages = Stages(partial(PreActBlock, activation=activation), (2, 2, 2, 2), (64, 64, 128, 256, 512))
    return PreActResNet(stages, in_channels=in_channels, classes=classes, activation=activation)


@register
def wrn28_10(*, in_channels: int, classes: int, activation: Activation = "relu") -> nn.Module:
    """WRN-28-10: 28 layers, ten times as wide, 36.5 million parameters (arXiv 1605.07146)."""
    return _wide(28, 10, in_channels=in_channels, classes=classes, activation=activation)


@register
def wrn34_10(*, in_channels: int, classes: int, activation: Activation = "relu") -> nn.Module:
    """WRN-34-10: 34 layers, ten times as wide, 46.2 million parameters; TRADES's network (arXiv 1901.08573)."""
    return _wide(34, 10, in_channels=in_channels, classes=classes, activation=activation)


@register
def wrn34_15(*, in_channels: int, classes: int, activation: Activation = "relu") -> nn.Module:
    """WRN-34-15: 34 layers, 15 times as wide, 103.8 million parameters."""
    return _wide(34, 15, in_channels=in_channels, classes=classes, activation=activation)


def _wide(depth: int, factor: int, *, in_channels: int, classes: int, activation: Activation) -> nn.Module:
    """Three stages of (depth - 4)/6 blocks at 16, 32 and 64 times `factor` channels, without dropout.

    This is what runs of TRADES's WideResNet; its code also holds a copy of the first stage that it never
    calls, which published parameter counts leave out.
    """
    count = (depth - 4) // 6
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    stages = Stages(partial(PreActBlock, activation=activation), (count, count, count), widths)
    return PreActResNet(stages, in_channels=in_channels, classes=classes, activation=activation)
