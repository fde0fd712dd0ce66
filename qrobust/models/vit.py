"""Vision transformers for small images, of plain linear layers, so that every one of them can be quantised."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError
from .registry import register


class Attention(nn.Module):
    """Multi-head self-attention: softmax(Q Kᵀ / √d) V for each head of d channels, tokens (n, t, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """What every token gathers from all."""
        n, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value)
        gathered: Tensor = self.projection(heads.transpose(1, 2).reshape(n, tokens, width))
        return gathered


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, t, width) to the same."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """Tokens of patches with learned positions, blocks with their norms in front, the mean of all tokens, classifier.

    Images (n, in_channels, h, w) in [0,1] of `size` (h, w); logits (n, classes). Raises ModelError for images of
    another size, of which no positions were learned.
    """

    def __init__(
        self, patches: nn.Conv2d, blocks: list[Block], classifier: nn.Linear, *, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.size, width = size, classifier.in_features
        self.patches = patches
        self.positions = nn.Parameter(POSITIONS * torch.randn(1, math.prod(size) // math.prod(patches.stride), width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.classifier = classifier
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        if tuple(x.shape[2:]) != self.size:
            found, wanted = ("x".join(map(str, side)) for side in (x.shape[2:], self.size))
            raise ModelError(f"expected images of {wanted} pixels, got {found}; set model.size to theirs")
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


@torch.no_grad()
def centre(conv: nn.Conv2d) -> None:
    """Let a first convolution begin as one of pixels moved to [-1, 1]: what images share does not drown the rest."""
    assert conv.bias is not None
    conv.weight.mul_(2)
    conv.bias.copy_(-conv.weight.sum(dim=(1, 2, 3)) / 2)


# Standard deviation of positions at first, about that of patches: a transformer that begins with the usual 0.02 has yet
# to learn where its tokens stand (digits, ten epochs: 39 % instead of 88 %).
POSITIONS = 0.3
HEAD = 32  # channels of an attention head
MLP_RATIO = 2  # as small data takes; four is usual


@register
def vit_small_images(
    *,
    in_channels: int,
    classes: int,
    size: int | tuple[int, int] = 32,
    patch: int = 4,
    width: int = 128,
    depth: int = 6,
) -> nn.Module:
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) for images of one small size.

    Input (n, in_channels, h, w) in [0,1]; output logits (n, classes). size: of the images, a side or [h, w] in pixels.
    patch: side of what becomes a token. width: channels of a token, 32 a head. Raises ModelError for a size that
    patches, or a width that heads, do not divide.
    """
    height, length = (size, size) if isinstance(size, int) else size
    if height % patch or length % patch:
        raise ModelError(f"expected a size that patches of {patch} pixels divide, got {height}x{length}; change one")
    if width % HEAD:
        raise ModelError(f"expected a width that {HEAD} divides, the channels of a head, got {width}; change it")
    patches = nn.Conv2d(in_channels, width, patch, stride=patch)
    centre(patches)
    blocks = [Block(width, width // HEAD) for _ in range(depth)]
    return VisionTransformer(patches, blocks, nn.Linear(width, classes), size=(height, length))
