"""Small networks with lived-in batch-norm statistics, and images for them."""

import torch
from torch import nn

from qrobust.models import build
from qrobust.quant import calibrate


def images(n=32, side=8, channels=1, seed=0):
    """Pixels of a camera: whole steps of 1/255, in [0,1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, side, side), generator=generator) / 255


def resnet(seed=0, activation="relu", shortcut="B"):
    """A resnet8 with random batch-norm, some of its γ negative, in eval mode."""
    torch.manual_seed(seed)
    model = build("resnet8", in_channels=1, classes=10, activation=activation, shortcut=shortcut)
    shake_norms(model)
    calibrate(model, [images()])
    return model.eval()


def shake_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.4, 1.6)
            nn.init.uniform_(module.bias, -0.5, 0.5)


class Plain(nn.Module):
    """conv-relu-pool-conv-relu-conv-linear with biases and no batch-norm; flattened by a function."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.relu = nn.ReLU()  # one module, called twice
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(self.relu(self.first(x)))
        x = self.third(self.relu(self.second(x)))
        return self.fc(torch.flatten(self.average(x), 1))


@torch.no_grad()
def relative(got, expected):
    """Size of the difference against how much the expected logits differ between images."""
    return float((got - expected).norm() / (expected - expected.mean(0)).norm())


def convolutions(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
