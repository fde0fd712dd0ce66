"""Random streams that do not know of each other, and what a number depended on."""

import itertools
import json

import pytest
import torch
from torch import nn

from qrobust import devices


def draws(*parts):
    return torch.rand(1000, generator=devices.generator(*parts))


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
    assert devices.generator(0, "train", 0).initial_seed() == 3205788069637787994


def test_placed_is_channels_last_on_the_device():
    model = devices.on_device(nn.Conv2d(3, 4, 3))
    assert model.weight.device.type == devices.device().type
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


# Threads


class Clock:
    """Stands for the time and for torch's threads; work takes what a table says of their number."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.threads, self.asked, self.seconds = 0.0, max(seconds), [], seconds
        monkeypatch.setattr(devices.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(devices, "most_threads", lambda: max(seconds))
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(self, "threads", count))

    def work(self):
        first = self.threads not in self.asked
        self.asked.append(self.threads)
        self.now += self.seconds[self.threads] * (10 if first else 1)  # warming up


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 0.020, 2: 0.020}, 1),  # a small network
        ({1: 0.020, 2: 0.019}, 1),
        ({1: 0.020, 2: 0.060}, 1),  # beside a busy process
        ({1: 0.020, 2: 0.012}, 2),
        ({1: 0.080, 2: 0.042, 4: 0.023, 8: 0.021}, 4),
        ({1: 0.030, 2: 0.010, 4: 0.010, 6: 0.050}, 2),
        ({1: 0.100, 2: 5.000}, 1),  # beside many
        ({1: 8.000, 2: 4.100, 4: 2.200, 8: 1.000}, 8),  # a large network
    ],
)
def test_the_fewest_threads_that_are_about_as_fast_as_the_best(monkeypatch, seconds, chosen):
    clock = Clock(monkeypatch, seconds)
    assert devices.choose_threads(clock.work) == chosen
    assert sorted(set(clock.asked)) == sorted(seconds)
    assert clock.threads == max(seconds)  # as before


@pytest.mark.parametrize("seconds", [{1: 0.3, 2: 0.2, 4: 0.1}, {1: 0.01, 2: 0.01}])
def test_a_trial_of_threads_takes_seconds(monkeypatch, seconds):
    """What they share out, and the last call with each, which may be a warming one."""
    clock = Clock(monkeypatch, seconds)
    devices.choose_threads(clock.work)
    assert clock.now < devices.TRIAL + 10 * sum(seconds.values())
    assert len(clock.asked) <= devices.CALLS * len(seconds)


def test_a_trial_leaves_the_threads_after_an_error(monkeypatch):
    clock = Clock(monkeypatch, {1: 0.01, 2: 0.01})

    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        devices.choose_threads(fails)
    assert clock.threads == 2


def test_where_there_is_one_thread_nothing_is_tried(monkeypatch):
    clock = Clock(monkeypatch, {1: 0.01})
    assert devices.choose_threads(clock.work) == 1
    assert clock.asked == []


def test_threads_of_torch():
    before, most = torch.get_num_threads(), devices.most_threads()
    devices.use_threads(3)
    try:
        assert (torch.get_num_threads(), devices.most_threads()) == (3, most)
    finally:
        devices.use_threads(before)


def test_versions_and_hardware_are_json():
    versions, hardware = devices.versions(), devices.hardware()
    json.dumps([versions, hardware], allow_nan=False)
    assert versions["torch"] == torch.__version__
    assert {"python", "numpy", "onnx", "brevitas"} <= set(versions)
    assert set(hardware) == {"cpu", "cores", "threads", "gpu"}
    assert hardware["cpu"]


def test_a_package_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(devices, "PACKAGES", ("torch", "no-such-package-here"))
    assert set(devices.versions()) == {"python", "torch"}


def test_images_follow_the_weights():
    assert devices.device_of(torch.nn.Linear(2, 2)) == torch.device("cpu")
    assert devices.device_of(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert devices.device_of(torch.nn.Flatten()) == torch.device("cpu")


@pytest.mark.parametrize(("free", "place"), [(201, "cuda"), (199, "cpu")])
def test_data_rests_on_a_gpu_that_has_room_for_twice_of_it(monkeypatch, free, place):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 1000))
    assert devices.home(100).type == place


def test_without_a_gpu_data_rests_in_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.home(10**15).type == "cpu"


def test_bf16_sees_every_change_of_a_weight():
    """Autocast may keep the cast of a weight for as long as it is on, over all steps of a training."""
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    with devices.precision("bf16"):
        before = layer(x)
        with torch.no_grad():
            layer.weight.add_(1)
        assert before.dtype == torch.bfloat16
        assert (layer(x) - before > 3).all()


@pytest.mark.parametrize(
    ("able", "chosen"),
    [({"avx2": True, "avx512_bf16": False}, "float32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"),
     ({"neon": True, "bf16": True}, "bf16"), ({}, "float32")],
)  # fmt: skip
def test_auto_is_bf16_where_a_processor_has_instructions_for_it(monkeypatch, able, chosen):
    """On one without, bf16 took fifteen times as long as float32 for ResNet-20."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert devices.precision_here("auto") == chosen
    with devices.precision("auto"):
        assert torch.is_autocast_enabled("cpu") == (chosen == "bf16")
    assert devices.precision_here("bf16") == "bf16"  # as asked for


@pytest.mark.parametrize(("able", "chosen"), [(True, "bf16"), (False, "float32")])
def test_auto_on_a_gpu_does_not_emulate(monkeypatch, able, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or able)
    assert devices.precision_here("auto") == chosen


@pytest.mark.parametrize("name", ["float32", "tf32", "bf16"])
def test_precision_is_what_it_was_afterwards(name):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with devices.precision(name):
        assert torch.is_autocast_enabled(devices.device().type) == (name == "bf16")
        assert torch.get_float32_matmul_precision() == ("highest" if name == "float32" else "high")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert not torch.is_autocast_enabled(devices.device().type)
