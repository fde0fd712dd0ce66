"""torchvision's networks for small machines, also for small images and any number of channels."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ..errors import ModelError
from ..torchvision_cpu import import_torchvision
from .registry import register
from .resnet import Stem, check_stem, initialise


@register
def mobilenet_v2(*, in_channels: int, classes: int, stem: Stem = "cifar", dropout: float = 0.0) -> nn.Module:
    """MobileNetV2 with ReLU6 (Sandler et al. 2018, arXiv 1801.04381), 2.2 million parameters and the classifier.

    Input (n, in_channels, h, w) in [0,1]; output logits (n, classes); parameters are named as torchvision's.
    stem: "imagenet" divides height and width by 32. "cifar" divides by 8: the first convolution
    (features.0.0) and the depthwise one that begins the stage of 24 channels (features.2.conv.1.0) have
    stride 1 instead of 2.
    dropout: before the classifier; in training mode it makes gradients random, and so attacks weaker.
    Raises ModelError for an unknown stem or a probability out of range.
    """
    check_stem(stem)
    _check_probability("dropout", dropout)
    network = import_torchvision().models.mobilenet_v2(weights=None, num_classes=classes, dropout=dropout)
    return _adapt(network, in_channels, stem)


@register
def efficientnet_b0(
    *,
    in_channels: int,
    classes: int,
    stem: Stem = "cifar",
    dropout: float = 0.0,
    stochastic_depth_prob: float = 0.0,
) -> nn.Module:
    """EfficientNet-B0 with SiLU (Tan and Le 2019, arXiv 1905.11946), 4 million parameters and the classifier.

    As `mobilenet_v2`; with "cifar" the strides that become 1 are those of features.0.0 and of the
    depthwise convolution of the first block with 24 channels (features.2.0.block.1.0).
    stochastic_depth_prob: how often the last block's residual is left out in training, earlier ones less.
    """
    check_stem(stem)
    _check_probability("dropout", dropout)
    _check_probability("stochastic_depth_prob", stochastic_depth_prob)
    network = import_torchvision().models.efficientnet_b0(
        weights=None, num_classes=classes, dropout=dropout, stochastic_depth_prob=stochastic_depth_prob
    )
    return _adapt(network, in_channels, stem)


def _adapt(network: nn.Module, in_channels: int, stem: Stem) -> nn.Module:
    """The network's parts in a row; pooling and flattening become modules, so that it can be quantised."""
    features, classifier = network.get_submodule("features"), network.get_submodule("classifier")
    first = features.get_submodule("0.0")
    if isinstance(first, nn.Conv2d) and first.in_channels != in_channels:
        features.set_submodule("0.0", _with_inputs(first, in_channels))
    if stem == "cifar":
        _stop_shrinking(features, times=2)
    pool, flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(OrderedDict(features=features, pool=pool, flatten=flatten, classifier=classifier))


def _with_inputs(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    (kernel, _), (stride, _) = conv.kernel_size, conv.stride
    fresh = nn.Conv2d(in_channels, conv.out_channels, kernel, stride, kernel // 2, bias=False)
    initialise(fresh)
    return fresh


def _stop_shrinking(features: nn.Module, *, times: int) -> None:
    """The first `times` convolutions with stride 2 get stride 1; their padding keeps height and width."""
    shrinking = [m for m in features.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for conv in shrinking[:times]:
        conv.stride = (1, 1)


def _check_probability(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0 <= value < 1):
        raise ModelError(f"expected {name} from 0 to below 1, got {value!r}")
