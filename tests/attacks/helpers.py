"""Networks small enough to attack a thousand times."""

import torch
from torch import nn

from qrobust.threat import Threat

LINF, L2 = Threat("linf", 8 / 255), Threat("l2", 0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=12, side=6, classes=3, seed=0):
    """Images with pixels at the ends of the range, and labels."""
    x = (torch.rand(n, 3, side, side, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    return x, torch.arange(n) % classes


def smooth_net(classes=3, seed=0):
    """No kinks, so gradients lead somewhere; with batch-norm, in train mode."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


def linear_net(side=6, classes=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_unchanged(model, before):
    after = model.state_dict()
    return all(torch.equal(after[name], value) for name, value in before.items())
