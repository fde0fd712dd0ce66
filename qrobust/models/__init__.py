"""Networks by name: each takes images in [0,1] (no normalisation outside) and returns logits."""

from . import convnext as convnext  # each registers its networks
from . import mobile as mobile  # torchvision is loaded when one is built
from . import vit as vit
from .registry import build, names, register
from .resnet import PreActResNet, ResNet

__all__ = [
    "PreActResNet",
    "ResNet",
    "build",
    "names",
    "register",
]
