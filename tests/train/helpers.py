"""Training small enough to repeat: 60 images of three classes, four epochs of three batches."""

import json
from dataclasses import replace

import torch
from torch import nn

from qrobust import devices
from qrobust.data import Dataset, Images
from qrobust.models import build
from qrobust.quant import QuantConfig, quantize
from qrobust.recipe import Data, Schedule, Training
from qrobust.threat import Threat
from qrobust.train import Job
from qrobust.train.step import Stepper

SCHEDULE = {"epochs": 4, "batch_size": 20, "lr": 0.05, "milestones": [2]}
TRAINING = {"attack": {"steps": 1}, "validation": {"steps": 1}}


def some_images(n, seed):
    """Noise, brighter in the channel of its class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randint(200, (n, 3, 6, 6), generator=generator)
    x[torch.arange(n), y] += 30
    return Images(x.to(torch.uint8), y)


def some_data(validation=21):
    train, held, test = some_images(60, 0), some_images(validation, 1), some_images(9, 2)
    return Dataset("fake", ("red", "green", "blue"), train, held, test, "fingerprint")


def network(width=4, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )
    return devices.on_device(model)


def deeper(fat, seed=0):
    """A network at four bits with one inner convolution, "3", behind FAT; "none" for the float network."""
    torch.manual_seed(seed)
    convs = [[nn.Conv2d(n, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()] for n in (3, 4)]
    model = nn.Sequential(*convs[0], *convs[1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    if fat != "none":
        model = quantize(model, QuantConfig(4, fat=fat), calibration=[some_images(30, 4).x / 255])
    return devices.on_device(model)


def vit(seed=0):
    """A transformer of nine tokens."""
    torch.manual_seed(seed)
    model = build("vit_small_images", in_channels=3, classes=3, size=6, patch=2, width=32, depth=1)
    return devices.on_device(model)


def job(folder, *, key="k", seed=0, schedule=None, **training):
    table = SCHEDULE | (schedule or {})
    return Job(
        label="QM-32",
        key=key,
        folder=folder,
        schedule=Schedule.model_validate(table),
        training=Training.model_validate(table | TRAINING | training),
        data=Data(name="fake", crop=1, flip=True),
        threat=Threat("linf", 8 / 255),
        seed=seed,
    )


def distilling(task, method, **training):
    """The same job by a method that has a teacher, which only the training of quantised networks may have."""
    settings = Training.model_validate(task.training.model_dump() | training)
    return replace(task, training=settings.model_copy(update={"method": method}))


def weights_of(model):
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def are_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metrics(folder):
    """What metrics.jsonl holds, but for the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(record.pop("images_per_second") > 0 for record in records)
    return records


def some_batch(n=12, seed=3):
    """Images (n, 3, 6, 6) in [0,1] and labels."""
    images = some_images(n, seed)
    return images.x.to(devices.device()) / 255, images.y.to(devices.device())


def stepper(model, task, average=None, teacher=None):
    """What a training would step with."""
    schedule = task.schedule
    optimizer = torch.optim.SGD(model.parameters(), lr=schedule.lr, momentum=schedule.momentum)
    return Stepper(model, optimizer, average, task, 3, teacher)
