"""ConvNeXt for small images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .registry import register
from .vit import centre


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps (n, c, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """x + scale · (1x1 ∘ GELU ∘ 1x1 ∘ norm ∘ depthwise)(x); the 1x1 convolutions are linear layers, channels last."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.full((width, 1, 1), SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, width, h, w) to the same."""
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        out: Tensor = x + self.scale * y
        return out


SCALE = 0.1  # that of few blocks; a millionth is for hundreds


@register
def convnext_small_images(
    *,
    in_channels: int,
    classes: int,
    widths: tuple[int, ...] = (32, 64, 128),
    depths: tuple[int, ...] = (1, 1, 1),
    kernel: int = 5,
) -> nn.Module:
    """ConvNeXt (Liu et al. 2022, arXiv 2201.03545) for small images: its stem halves them, as does every stage after.

    Input (n, in_channels, h, w) in [0,1]; output logits (n, classes). widths, depths: channels and blocks of each
    stage. kernel: side of the depthwise convolutions, odd. Raises ModelError for others.
    """
    if len(widths) != len(depths) or kernel % 2 == 0:
        got = f"widths {list(widths)}, depths {list(depths)}, kernel {kernel}"
        raise ModelError(f"expected as many widths as depths, and an odd kernel, got {got}; change one")
    first = nn.Conv2d(in_channels, widths[0], 2, stride=2)
    centre(first)
    stages = nn.Sequential()
    for before, width, depth in zip((None, *widths[:-1]), widths, depths, strict=True):
        shrinking = [] if before is None else [ChannelNorm(before), nn.Conv2d(before, width, 2, stride=2)]
        stages.append(nn.Sequential(*shrinking, *[Block(width, kernel) for _ in range(depth)]))
    parts = {
        "stem": nn.Sequential(first, ChannelNorm(widths[0])),
        "stages": stages,
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "norm": nn.LayerNorm(widths[-1]),
        "classifier": nn.Linear(widths[-1], classes),
    }
    return nn.Sequential(OrderedDict(parts))
