"""What calibration images decide, and what they leave: on a network that was trained on digits."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from qrobust.data import DataSettings, load
from qrobust.errors import ModelError
from qrobust.quant import calibrate, quantize, requantize

from .helpers import images, resnet


@functools.cache
def digits():
    found = load(DataSettings("digits")).train
    return found.x.float() / 255, found.y


@functools.cache
def trained():
    """Not to be changed: in eval mode."""
    torch.manual_seed(0)
    layers = [
        layer
        for channels in ((1, 16), (16, 32), (32, 32))
        for layer in (nn.Conv2d(*channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels[1]), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = digits()
    for step in range(100):
        chosen = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def flips(model):
    """Share of digits whose label is not the trained network's."""
    x, _ = digits()
    return float((model.eval()(x).argmax(1) != trained()(x).argmax(1)).float().mean())


def test_eight_images_are_enough_for_eight_bits():
    """Their statistics are not: 8 images know batch-norm's badly."""
    x, _ = digits()
    assert flips(quantize(trained(), 8, fat="none", calibration=x[:8])) < 0.01
    assert flips(quantize(trained(), 8, fat="none", calibration=x[:8], estimate_statistics=True)) > 0.05


def statistics_of(model):
    return {key: value for key, value in model.state_dict().items() if "running" in key}


@pytest.mark.parametrize(("fat", "asked", "kept"), [
    ("none", None, True), ("none", True, False), ("normalised", None, False), ("normalised", False, True),
])  # fmt: skip
def test_statistics_stay_unless_asked_or_behind_fat(fat, asked, kept):
    made = quantize(trained(), 8, fat=fat, calibration=images(), estimate_statistics=asked)
    before, after = statistics_of(trained()), statistics_of(made)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before) == kept
    narrower = requantize(made, 4, calibration=images(seed=3), estimate_statistics=asked)
    assert all(torch.equal(after[key], value) for key, value in statistics_of(narrower).items()) == kept


def test_calibration_leaves_the_mode_of_every_module():
    model = quantize(resnet(), 4, calibration=None).train()
    model.get_submodule("bn").eval()
    modes = [module.training for module in model.modules()]
    calibrate(model, images())
    assert [module.training for module in model.modules()] == modes


def test_images_come_in_any_container():
    x = images(16)
    loader = DataLoader(TensorDataset(x, torch.zeros(16)), batch_size=16)
    made = [quantize(resnet(), 4, calibration=given) for given in (x, [x], (x,), iter([x]), loader, [(x, x)])]
    states = [model.state_dict() for model in made]
    assert all(torch.equal(value, state[key]) for state in states for key, value in states[0].items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected at least one batch of calibration images, got none"),
        (images() * 2, r"expected calibration images in \[0, 1\], got \[0, 2\]; pass unnormalised"),
        (images() * float("nan"), "expected calibration images in"),
        ((images() * 255).to(torch.uint8), r"as floats \(n, c, h, w\), got torch.uint8 \(32, 1, 8, 8\)"),
        ([images()[0]], r"as floats \(n, c, h, w\), got torch.float32 \(1, 8, 8\); pass batches"),
        (["image.png"], r"as floats \(n, c, h, w\), got str; pass batches"),
    ],
)
def test_other_images_are_refused(given, message):
    with pytest.raises(ModelError, match=message):
        quantize(resnet(), 4, calibration=given)
