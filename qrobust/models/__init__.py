"""Networks by name: each takes images in [0,1] (no normalisation outside) and returns logits."""

from .registry import build, names, register
from .resnet import ResNet

__all__ = ["ResNet", "build", "names", "register"]
