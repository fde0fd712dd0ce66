"""Residual networks (He et al. 2016, arXiv 1512.03385): the paper's small ones, and its deep ones for any image."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .blocks import Activation, BasicBlock, Bottleneck, Shortcut, initialise, make_activation
from .registry import register
from .stages import StagedNetwork, Stages, Stem, check_stem

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
