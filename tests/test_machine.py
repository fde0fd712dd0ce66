"""Random streams that do not know of each other, and what a number depended on."""

import itertools
import json

import torch
from torch import nn

from qrobust import machine


def draws(*parts):
    return torch.rand(1000, generator=machine.generator(*parts))


def test_a_stream_is_fixed_by_its_parts():
    assert torch.equal(draws(0, "train", 3), draws(0, "train", 3))


def test_streams_are_independent():
    streams = [draws(seed, use, epoch) for seed in (0, 1) for use in ("train", "evaluate") for epoch in (0, 1, 10)]
    for one, other in itertools.combinations(streams, 2):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.15
        assert not torch.equal(one, other)


def test_a_stream_does_not_touch_the_global_one():
    state = torch.get_rng_state()
    draws(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_is_the_same_tomorrow():
    """A snapshot: published numbers depend on it."""
    assert machine.generator(0, "train", 0).initial_seed() == 3205788069637787994


def test_placed_is_channels_last_on_the_device():
    model = machine.placed(nn.Conv2d(3, 4, 3))
    assert model.weight.device.type == machine.device().type
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_versions_and_hardware_are_json():
    versions, hardware = machine.versions(), machine.hardware()
    json.dumps([versions, hardware], allow_nan=False)
    assert versions["torch"] == torch.__version__
    assert {"python", "numpy", "onnx", "brevitas"} <= set(versions)
    assert set(hardware) == {"cpu", "cores", "threads", "gpu"}
    assert hardware["cpu"]


def test_a_package_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package-here"))
    assert set(machine.versions()) == {"python", "torch"}


def test_images_follow_the_weights():
    assert machine.device_of(torch.nn.Linear(2, 2)) == torch.device("cpu")
    assert machine.device_of(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert machine.device_of(torch.nn.Flatten()) == torch.device("cpu")
