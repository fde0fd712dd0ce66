"""Every entry of the table beside torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from .helpers import assert_equal, numbers

IMAGE, TOKENS = numbers(3, 4, 6, 6), numbers(3, 5, 8)
TABLE = numbers(1, 5, 8, seed=2)
MASK = torch.arange(5)[:, None] >= torch.arange(5)


class Attended(nn.Module):
    """Attention with a mask, which the number of images does not change."""

    def __init__(self, **settings):
        super().__init__()
        self.qkv, self.settings = nn.Linear(8, 24), settings

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v, **self.settings).transpose(1, 2).flatten(2)


class Shifted(nn.Module):
    """A mask made in place, as Swin's, and a token that every image gets."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x):
        mask = x.new_zeros((6, 6))
        for index, part in enumerate((slice(0, -2), slice(-2, None))):
            mask[part, part] = index + 1
        mask = mask.masked_fill(mask != mask[:, :1], -100.0)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return torch.softmax(x @ x.transpose(-2, -1) + mask, -1) @ x


LAYERS = {
    "conv1d": (nn.Conv1d(5, 6, 3, stride=2, padding=1), TOKENS),
    "conv2d same": (nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2), IMAGE),
    "conv2d valid, groups": (nn.Conv2d(4, 6, 3, padding="valid", groups=2, bias=False), IMAGE),
    "conv reflect": (nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv_transpose1d": (nn.ConvTranspose1d(5, 6, 3, stride=2), TOKENS),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), IMAGE),
    "linear of rows": (nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), IMAGE),
    "linear of tokens": (nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 2, bias=False)), TOKENS),
    "batch_norm": (nn.BatchNorm2d(4), IMAGE),
    "batch_norm without weights": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, affine=False)), IMAGE),
    "batch_norm1d": (nn.Sequential(nn.Flatten(), nn.Linear(144, 3), nn.BatchNorm1d(3)), IMAGE),
    "folded": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), IMAGE),
    "folded1d": (nn.Sequential(nn.Conv1d(5, 6, 3, bias=False), nn.BatchNorm1d(6)), TOKENS),
    "layer_norm": (nn.LayerNorm(8), TOKENS),
    "layer_norm of two": (nn.LayerNorm((6, 6), elementwise_affine=False), IMAGE),
    "rms_norm": (nn.RMSNorm(8, eps=1e-3), TOKENS),
    "group_norm": (nn.GroupNorm(2, 4), IMAGE),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), IMAGE),
    "instance_norm, measured": (nn.InstanceNorm2d(4, track_running_stats=True), IMAGE),
    "attention": (Attended(), TOKENS),
    "attention, causal": (Attended(is_causal=True), TOKENS),
    "attention, boolean": (Attended(attn_mask=MASK), TOKENS),
    "attention, added": (Attended(attn_mask=MASK.float(), scale=0.3), TOKENS),
    "multi-head": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), TOKENS),
    "masks and tokens": (Shifted(), TOKENS),
    "prelu": (nn.PReLU(4), IMAGE),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 2)), IMAGE),
    "adaptive, one": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive, uneven": (nn.AdaptiveAvgPool2d((4, 9)), IMAGE),
    "adaptive1d, uneven": (nn.AdaptiveAvgPool1d(3), TOKENS),
    "adaptive, largest": (nn.Sequential(nn.AdaptiveMaxPool2d(3), nn.AdaptiveMaxPool2d(1)), IMAGE),
    "average": (nn.AvgPool2d(3, 2, 1), IMAGE),
    "average without pads": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "average with a divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "largest": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "largest, dilated": (nn.MaxPool2d(2, 1, dilation=2), IMAGE),
    "nearest": (nn.Upsample(scale_factor=2), IMAGE),
    "nearest, uneven": (nn.Upsample((7, 13)), IMAGE),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "bilinear, corners": (nn.Upsample((5, 11), mode="bilinear", align_corners=True), IMAGE),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE),
    "pixel_shuffle": (nn.PixelShuffle(2), IMAGE),
    "pixel_unshuffle": (nn.PixelUnshuffle(3), IMAGE),
    "channel_shuffle": (nn.ChannelShuffle(2), IMAGE),
    "dropout, identity": (nn.Sequential(nn.Dropout(), nn.Identity(), nn.ReLU(inplace=True)), IMAGE),
}
FUNCTIONS = {
    "pad zeros": lambda x: F.pad(x, (1, 0, 2, 1)),
    "pad value": lambda x: F.pad(x, (1, 2), value=0.7),
    "pad cut": lambda x: F.pad(x, (-1, 2)),
    "pad reflect": lambda x: F.pad(x, (2, 1, 1, 0), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (2, 1, 1, 0), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (2, 1, 1, 3), mode="circular"),
    "view": lambda x: x.view(x.size(0), 2, -1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(-1, 1),
    "mT": lambda x: x.mT,
    "movedim": lambda x: x.movedim(1, -1),
    "squeeze": lambda x: x.mean(2, keepdim=True).squeeze(2).unsqueeze(-1),
    "slice": lambda x: x[:, 1:, ::2, :-1],
    "select": lambda x: x[:, 1, :, -1],
    "narrow": lambda x: x.narrow(2, 1, 3),
    "index": lambda x: x[:, [2, 0, 1, 1]],
    "index_select": lambda x: x.index_select(3, torch.tensor([1, 0])),
    "chunk": lambda x: torch.cat(x.chunk(3, 2)[::-1], 2),
    "split": lambda x: torch.cat(x.split(3, 1)[::-1], 1),
    "split sizes": lambda x: torch.stack([part.sum(1) for part in x.split([1, 3], 1)], -1),
    "unbind": lambda x: x.unbind(1)[0] - x.unbind(1)[2],
    "flip": lambda x: x.flip(1, -1),
    "roll": lambda x: x.roll((-2, 1), (2, 3)),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 5, -1, -1),
    "tile": lambda x: torch.tile(x[:, 0], (1, 2, 1)),
    "expand_as": lambda x: x / x.norm(dim=1, keepdim=True).expand_as(x),
    "normalise": lambda x: F.normalize(x, dim=1),
    "mean": lambda x: x.mean((2, 3)),
    "amax": lambda x: x.amax(1) + x.amin(1),
    "sum": lambda x: x.sum(-1, keepdim=True),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std((2, 3), unbiased=False, keepdim=True),
    "l1": lambda x: x.norm(1, 1),
    "logsumexp": lambda x: x.logsumexp(1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "arithmetic": lambda x: (1 - x) * 2 + x / 3 - torch.sub(x, x, alpha=0.5),
    "pow": lambda x: x**2 + (x.abs() + 1) ** 0.5,
    "roots": lambda x: torch.rsqrt(x.abs() + 1) + (x.square() + 1).sqrt().log().exp(),
    "neg": lambda x: (-x).floor().ceil(),
    "waves": lambda x: x.sin() + x.cos() + torch.erf(x) + x.round() + x.sign() + (x.abs() + 1).reciprocal(),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "extremes": lambda x: torch.maximum(x, -x / 2).minimum(x + 1),
    "compared": lambda x: torch.where((x > 0.5) | ((x < -0.5) & ~(x <= -1)), x, 0.25 * x),
    "filled": lambda x: x.masked_fill(x >= 0, -1.0),
    "as numbers": lambda x: (x > 0).float() + (x == x).to(x.dtype),
    "whole": lambda x: x * torch.arange(6) + torch.arange(4)[:, None, None],
    "clamp": lambda x: x.clamp(-0.5, 1).clamp_min(-0.2).clamp(max=0.7),
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.4),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "celu": F.celu,
    "selu": F.selu,
    "softplus": lambda x: F.softplus(x, 2),
    "glu": lambda x: F.glu(x, 1),
    "log_sigmoid": F.logsigmoid,
    "sigmoid, tanh": lambda x: x.sigmoid() * x.tanh(),
    "softsign": F.softsign,
    "bmm": lambda x: torch.bmm(x[:, 0], x[:, 1]),
    "matmul": lambda x: x @ torch.ones(6, 2),
    "mm": lambda x: x[:, 0, 0] @ torch.ones(6, 2),
    "baddbmm": lambda x: torch.baddbmm(x[:, 2], x[:, 0], x[:, 1], beta=0.5, alpha=2),
    "einsum": lambda x: torch.einsum("bchw, bdhw -> bcd", x, x),
    "addmm": lambda x: torch.addmm(torch.ones(2), x[:, 0, 0], torch.ones(6, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    assert_equal(*LAYERS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    assert_equal(FUNCTIONS[name], IMAGE)
