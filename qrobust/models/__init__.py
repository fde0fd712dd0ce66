"""Networks by name: each takes images in [0,1] (no normalisation outside) and returns logits."""

from . import mobile as mobile  # registers its networks; torchvision is loaded when one is built
from .registry import build, names, register
from .resnet import PreActResNet, ResNet

__all__ = [
    "PreActResNet",
    "ResNet",
    "build",
    "names",
    "register",
]
