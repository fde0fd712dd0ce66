"""Networks that normalise and activate before each convolution: pre-activation and wide residual networks."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .blocks import Activation, PreActBlock, initialise, make_activation
from .registry import register
from .stages import StagedNetwork, Stages


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
