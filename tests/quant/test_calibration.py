"""What calibration images decide, and what they leave: on a network that was trained on digits."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from qrobust.data import DataSettings, Images, load
from qrobust.errors import DataError, ModelError
from qrobust.quant import QuantConfig, calibrate, quantize, requantize

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


@pytest.mark.slow
def test_eight_images_are_enough_for_eight_bits():
    """Their statistics are not: 8 images know batch-norm's badly."""
    x, _ = digits()
    assert flips(quantize(trained(), QuantConfig(8, fat="none"), calibration=x[:8])) < 0.01
    assert flips(quantize(trained(), QuantConfig(8, fat="none"), calibration=x[:8], estimate_statistics=True)) > 0.05


def statistics_of(model):
    return {key: value for key, value in model.state_dict().items() if "running" in key}


@pytest.mark.parametrize(("fat", "asked", "kept"), [
    ("none", None, True), ("none", True, False), ("normalised", None, False), ("normalised", False, True),
])  # fmt: skip
def test_statistics_stay_unless_asked_or_behind_fat(fat, asked, kept):
    made = quantize(trained(), QuantConfig(8, fat=fat), calibration=images(), estimate_statistics=asked)
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


GIVEN = {
    "batches": lambda x, y: [x],
    "a tuple": lambda x, y: (x,),
    "an iterator": lambda x, y: iter([x]),
    "bytes": lambda x, y: (x * 255).to(torch.uint8),
    "an array": lambda x, y: x.numpy(),
    "doubles": lambda x, y: x.numpy().astype(float),
    "a pair": lambda x, y: (x, y),
    "a pair of arrays": lambda x, y: (x.numpy(), y.numpy()),
    "batches with labels": lambda x, y: [(x, y)],
    "images": lambda x, y: Images((x * 255).to(torch.uint8), y),
    "data set": lambda x, y: TensorDataset(x, y),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=16),
}


@functools.cache
def by_a_tensor():
    return calibrated(eight_bits())


@functools.cache
def uncalibrated():
    return quantize(small(), 4, calibration=None)


def calibrated(given):
    model = copy.deepcopy(uncalibrated())
    calibrate(model, given)
    return model.state_dict()


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def eight_bits():
    return (images(16) * 255).to(torch.uint8) / 255


@pytest.mark.parametrize("make", GIVEN.values(), ids=GIVEN)
def test_images_come_in_any_container(make):
    state = calibrated(make(eight_bits(), torch.zeros(16, dtype=torch.int64)))
    for key, value in by_a_tensor().items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6)


def test_quantize_takes_a_loader_too():
    given = GIVEN["loader"](eight_bits(), torch.zeros(16, dtype=torch.int64))
    state, expected = (quantize(small(), 4, calibration=images).state_dict() for images in (given, eight_bits()))
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected at least one batch of calibration images, got none"),
        (images() * 2, r"expected calibration images in \[0, 1\], got \[0, 2\]; pass unnormalised"),
        (images() * float("nan"), "expected calibration images in"),
        ((images() * 255).long(), r"as floats or bytes \(n, c, h, w\), got torch.int64 \(32, 1, 8, 8\)"),
        ([images()[0]], r"as floats or bytes \(n, c, h, w\), got torch.float32 \(1, 8, 8\); pass batches"),
    ],
)
def test_other_images_are_refused(given, message):
    with pytest.raises(ModelError, match=message):
        quantize(resnet(), 4, calibration=given)


@pytest.mark.parametrize(("given", "message"), [
    (["image.png"], "expected images as numbers of one shape"), (3, "expected batches of images, got int; give Images"),
])  # fmt: skip
def test_what_is_no_images_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        quantize(resnet(), 4, calibration=given)
