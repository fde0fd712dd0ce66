"""Networks small enough to attack a thousand times."""

import functools

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


@functools.cache
def digits():
    """Images (n, 1, 8, 8) in whole steps of 1/255 and labels, in [0,1]: 1000 to learn from, then 200."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy(x / 16 * 255).round().float().view(-1, 1, 8, 8) / 255
    y = torch.from_numpy(y).long()
    return (x[:1000], y[:1000]), (x[1000:1200], y[1000:1200])


@functools.cache
def digits_net():
    """A small convolutional network that has seen digits for a hundred steps; not to be changed."""
    (x, y), _ = digits()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(108, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()
