"""Batches of one pass over the training images, with crops, resized crops, flips, mixup, cutout and cutmix.

Random numbers are drawn on the CPU and then moved, per image, so a batch is mixed the same on every device.
Shapes are the same in all three: x floats (n, c, h, w) in [0,1], clean or adversarial; y labels (n,); the result
is x of the same shape, range, dtype and memory format, and targets float32 (n, classes), each row summing to 1.
generator: on the CPU. All raise DataError if alpha is not a positive number.

Random numbers are drawn on the CPU and then moved, so an image is cropped the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import DataError
from .extra import Extra
from .images import Images, learning_batches, to_unit

TRIES, WIDEST = 10, 4 / 3  # of resized crops: draws of a window, and width to height or height to width


def mixup(x: Tensor, y: Tensor, *, classes: int, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """x_i ← a_i x_i + (1 - a_i) x_j and t_i = a_i onehot(y_i) + (1 - a_i) onehot(y_j), a_i ~ Beta(alpha, alpha).

    j runs through a permutation of the batch, so every image is once a partner, perhaps its own.

    Zhang et al. 2018, arXiv 1710.09412; their code draws one share per batch, here each image has its own.

    >>> g = torch.Generator().manual_seed(0)
    >>> x, targets = mixup(torch.rand(4, 3, 8, 8), torch.arange(4), classes=10, alpha=1.0, generator=g)
    """
    share = _shares(len(x), alpha, generator).to(x.device)
    partner = torch.randperm(len(x), generator=generator).to(x.device)
    # lerp takes the shorter way from either end, so it never leaves the interval between the two.
    mixed = x[partner].lerp(x, share.to(x.dtype).view(-1, 1, 1, 1))
    return mixed, _targets(y, partner, share, classes)


def cutout(x: Tensor, y: Tensor, *, classes: int, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """A patch of each image set to 0, its share of the area ~ Beta(alpha, alpha); targets stay one-hot.

    The patch has the image's proportions and lies wholly inside, anywhere with the same probability.

    DeVries and Taylor 2017, arXiv 1708.04552, cut one size, in part beyond the border; the random size is from
    Huang et al., "What Do Adversarially trained Neural Networks Focus: A Fourier Domain-based Study", section 3.2.
    """
    share = _shares(len(x), alpha, generator)
    patch = _patches(x, share, generator, clip=False)
    return torch.where(patch, 0.0, x), F.one_hot(y, classes).float()


def cutmix(
    x: Tensor, y: Tensor, *, classes: int, alpha: float, generator: Generator, border: str = "clip"
) -> tuple[Tensor, Tensor]:
    """A patch of each image replaced by the same place of a partner; t_i = a_i onehot(y_i) + (1 - a_i) onehot(y_j).

    1 - a_i is the exact share of the pixels that were replaced. border "clip": at most the share ~ Beta(alpha, alpha)
    that was drawn, since the patch's centre is anywhere in the image, and what lies beyond the border is lost (for
    alpha 1 a mean of 0.32, not 0.5). "inside": that share up to rounding, the patch as in `cutout`. Partners as in
    `mixup`.

    Yun et al. 2019, arXiv 1905.04899, clip; their code draws one patch per batch, here each image has its own. In
    Huang et al., section 3.2, as in `cutout`, the patch's share of the area is what is drawn: "inside".
    """
    share = _shares(len(x), alpha, generator)
    partner = torch.randperm(len(x), generator=generator).to(x.device)
    patch = _patches(x, share, generator, clip=border == "clip")
    retained = 1 - patch.float().mean(dim=(1, 2, 3))
    return torch.where(patch, x[partner], x), _targets(y, partner, retained, classes)


MIXES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"mixup": mixup, "cutout": cutout, "cutmix": cutmix}


def _shares(n: int, alpha: float, generator: Generator) -> Tensor:
    """n draws of Beta(alpha, alpha), float32; through numpy, as torch's own take no generator."""
    if not 0 < alpha < math.inf:
        raise DataError(f"expected a positive alpha, got {alpha}; use 1 for uniform shares")
    seed = int(torch.randint(2**63 - 1, (1,), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, n)).float()


def _targets(y: Tensor, partner: Tensor, share: Tensor, classes: int) -> Tensor:
    """share_i onehot(y_i) + (1 - share_i) onehot(y_partner(i)), (n, classes)."""
    own = F.one_hot(y, classes).float()
    return own[partner].lerp(own, share[:, None])


def _patches(x: Tensor, share: Tensor, generator: Generator, *, clip: bool) -> Tensor:
    """Masks (n, 1, h, w), True inside one rectangle of each image that covers `share` (n,) of it, up to rounding."""
    rows = _spans(x.shape[2], share.sqrt(), generator, clip).to(x.device)
    columns = _spans(x.shape[3], share.sqrt(), generator, clip).to(x.device)
    return rows[:, None, :, None] & columns[:, None, None, :]


def _spans(side: int, share: Tensor, generator: Generator, clip: bool) -> Tensor:
    """Masks (n, side), True in one span of about share·side pixels.

    clip: the span's centre is uniform, and what lies beyond the ends is lost; or else its place within the ends.
    """
    length = (share * side).round().long()[:, None]
    places = side if clip else side - length + 1
    # double: in single precision the largest draws would round up to one place too many
    place = torch.rand(len(share), 1, dtype=torch.float64, generator=generator) * places
    start = (place - length / 2 + 0.5 if clip else place).floor()
    pixel = torch.arange(side)
    return (pixel >= start) & (pixel < start + length)


def augment(
    x: Tensor, *, padding: int, flip: bool, generator: Generator, resized: tuple[float, float] | None = None
) -> Tensor:
    """A random crop of x (n, c, h, w) after `padding` pixels of zeros; then, if asked for, a resized one, of a share of
    the area within `resized`, and a random flip.

    Shape, dtype (uint8 or float) and device are kept. generator: on the CPU.
    """
    x = crop(x, padding, generator)
    x = x if resized is None else resized_crop(x, resized, generator)
    return _flip(x, generator) if flip else x


def crop(x: Tensor, padding: int, generator: Generator) -> Tensor:
    """One window of the size of x (n, c, h, w) from each image, padded by `padding` zeros on every side.

    Both offsets are uniform in [0, 2 padding], drawn per image. A padding of 0 draws nothing and returns x.
    Raises DataError if padding is negative.
    """
    if padding < 0:
        raise DataError(f"expected a padding of at least 0 pixels, got {padding}; use 0 for no crop")
    if padding == 0:
        return x
    n, _, h, w = x.shape
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator).to(x.device)
    # A view of all windows, (n, c, top, left, h, w): only the chosen ones are ever copied.
    windows = F.pad(x, [padding] * 4).unfold(2, h, 1).unfold(3, w, 1)
    return windows[torch.arange(n, device=x.device), :, top, left]


def resized_crop(x: Tensor, scale: tuple[float, float], generator: Generator) -> Tensor:
    """Of each image of x (n, c, h, w) a random window, resized (bilinear) to the image's own size.

    The window's share of the area is uniform in `scale`, within (0, 1], the logarithm of its width to height uniform
    between those of 3/4 and 4/3, its place uniform; of ten draws the first that lies inside counts, else the largest
    centred window of these proportions: torchvision's RandomResizedCrop. uint8 is rounded. On a GPU it is computed
    there, up to rounding as on the CPU.

    Szegedy et al. 2015, "Going Deeper with Convolutions", arXiv 1409.4842, section 6.
    """
    n, _, h, w = x.shape
    top, left, height, width = _windows(n, h, w, scale, generator).to(x.device)
    rows, columns = _sampled(h, top, height), _sampled(w, left, width)
    grid = torch.stack([columns[:, None, :].expand(-1, h, -1), rows[:, :, None].expand(-1, -1, w)], dim=-1)
    whole = x if x.is_floating_point() else x.float()
    found = F.grid_sample(whole, grid.to(whole.dtype), mode="bilinear", padding_mode="border", align_corners=True)
    return found if x.is_floating_point() else found.round().to(x.dtype)


def _windows(n: int, h: int, w: int, scale: tuple[float, float], generator: Generator) -> Tensor:
    """Top, left, height and width of a window an image, int64 (4, n)."""
    area, shape, down, right = torch.rand(4, n, TRIES, dtype=torch.float64, generator=generator)
    area = h * w * (scale[0] + (scale[1] - scale[0]) * area)
    shape = (WIDEST ** (2 * shape - 1)).sqrt()  # the root of width to height
    height, width = (area.sqrt() / shape).round(), (area.sqrt() * shape).round()
    inside = (height >= 1) & (height <= h) & (width >= 1) & (width <= w)
    first = inside.long().argmax(1)[:, None]  # 0 where none is
    drawn = torch.stack([(down * (h - height + 1)).floor(), (right * (w - width + 1)).floor(), height, width])
    chosen = drawn.gather(2, first.expand(4, -1, -1)).squeeze(2)
    high, wide = min(h, round(w * WIDEST)), min(w, round(h * WIDEST))
    centred = torch.tensor([(h - high) // 2, (w - wide) // 2, high, wide], dtype=torch.float64)
    return torch.where(inside.any(1), chosen, centred[:, None]).long()


def _sampled(side: int, start: Tensor, length: Tensor) -> Tensor:
    """Where in [-1, 1], from the first pixel's centre to the last's, a window's pixels are read, (n, side)."""
    steps = (torch.arange(side, device=start.device, dtype=torch.float64) + 0.5) * length[:, None] / side - 0.5
    inside = steps.clamp(min=torch.zeros_like(length)[:, None], max=(length - 1)[:, None])  # not beyond the window
    return 2 * (start[:, None] + inside) / max(side - 1, 1) - 1


def flip(x: Tensor, generator: Generator) -> Tensor:
    """x (n, c, h, w) with each image mirrored left to right with probability 1/2."""
    mirror = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(mirror.to(x.device).view(-1, 1, 1, 1), x.flip(-1), x)


_flip = flip  # `augment` has a parameter of that name


def epoch_batches(
    images: Images,
    batch_size: int,
    generator: Generator,
    device: torch.device | str,
    padding: int = 0,
    flip: bool = False,
    resized: tuple[float, float] | None = None,
    extra: Extra | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, in a random order: x float32 (n, c, h, w) in [0, 1] and y int64 (n,), on the device.

    Batches are those of `learning_batches`: a last image on its own joins the batch before, so that none is left out.
    padding, flip, resized: see `augment`. generator: on the CPU; its state alone decides order and augmentation. images
    may rest on the CPU, in a file (`Mapped`: read one batch ahead) or, fastest, on the device already.
    extra: what stands in every batch beside them, behind them and augmented alike; they are then as many fewer.
    Raises DataError if batch_size < 1.
    """
    spans = learning_batches(len(images), batch_size) if extra is None else extra.spans(len(images), batch_size)
    beside = repeat(None, len(spans)) if extra is None else extra.stream(len(images), batch_size)
    changed = partial(augment, padding=padding, flip=flip, resized=resized, generator=generator)
    return _epoch(images, spans, beside, generator, torch.device(device), changed)


def _epoch(
    images: Images,
    spans: list[slice],
    beside: Iterable[Images | None],
    generator: Generator,
    device: torch.device,
    changed: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(images), generator=generator).to(images.y.device)
    for resting, others in zip(images.stream(order[span] for span in spans), beside, strict=True):
        batch = resting.to(device)
        if others is not None:
            batch = Images(*map(torch.cat, zip(*((one.x, one.y) for one in (batch, others.to(device))), strict=True)))
        # Augmented as bytes, a quarter of the memory traffic of float32.
        yield to_unit(changed(batch.x), device), batch.y
