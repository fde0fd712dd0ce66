"""AutoAttack part by part is AutoAttack: the package's own driver gives the same, to the image."""

import random

import numpy as np
import pyautoattack
import pytest
import torch

from qrobust.attacks import Scene, autoattack_part, named
from qrobust.attacks.auto import NORMS, PARTS
from qrobust.data import Images, to_unit
from qrobust.errors import RecipeError
from qrobust.evaluate import evaluate
from qrobust.threat import Threat

from .helpers import batch, copy_of, digits, digits_net, is_unchanged, seeded, smooth_net

THREATS = {"linf": Threat("linf", 0.08), "l2": Threat("l2", 0.35)}
N, SEED = 60, 7


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """A tenth of the steps, for the driver and for the parts alike."""
    settled = pyautoattack.AutoAttack._set_version

    def shortened(self, version):
        settled(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10
        self.square.n_queries = 200

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)


def images(n=N):
    _, (x, y) = digits()
    return Images((x[:n] * 255).round().to(torch.uint8), y[:n])


def driven(x, y, threat, batch_size, *parts):
    """x_adv of the package's own driver, and which images it leaves right."""
    whole = pyautoattack.AutoAttack(digits_net(), norm=NORMS[threat.norm], eps=threat.eps, seed=SEED)
    whole.attacks_to_run = list(parts or PARTS)
    x_adv, labels = whole.run_standard_evaluation(x, y, batch_size=batch_size)
    return x_adv, labels == y


@pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
@pytest.mark.parametrize("batch_size", [16, 500])
def test_an_evaluation_is_the_drivers(threat, batch_size):
    some = images()
    _, right = driven(to_unit(some.x, "cpu", channels_last=True), some.y, threat, batch_size)
    attacks = [named("autoattack", threat)]
    found = evaluate(digits_net(), some, attacks=attacks, threat=threat, seed=SEED, batch_size=batch_size)
    assert 5 < right.sum() < 55  # neither all nor nothing
    assert found.correct["autoattack"].tolist() == right.tolist()


@pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
def test_crafting_is_the_drivers_to_the_pixel(threat):
    _, (x, y) = digits()
    right = digits_net()(x).argmax(1) == y
    x, y = x[right][:N], y[right][:N]
    expected, left = driven(x, y, threat, N)
    x_adv = named("autoattack", threat).craft(Scene(digits_net(), threat, seed=SEED), x, y, seeded())
    assert torch.equal(x_adv[~left], expected[~left])
    assert (digits_net()(x_adv).argmax(1) == y).tolist() == left.tolist()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_the_drivers_to_the_pixel(part):
    _, (x, y) = digits()
    right, threat = digits_net()(x).argmax(1) == y, THREATS["linf"]
    x, y = x[right][:N], y[right][:N]
    expected, left = driven(x, y, threat, N, part)
    x_adv = autoattack_part(digits_net(), x, y, part=part, threat=threat, seed=SEED)
    assert 0 < left.sum() < N
    assert torch.equal(x_adv[~left], expected[~left])


@pytest.mark.parametrize("part", PARTS)
def test_every_part_stays_inside_and_leaves_the_rest_alone(part):
    model, threat, (x, y) = smooth_net(classes=4).train(), Threat("linf", 0.05), batch(classes=4)
    before, pixels = copy_of(model), x.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    x_adv = autoattack_part(model, x, y, part=part, threat=threat)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert threat.distance(x_adv, x).max() <= threat.eps + 1e-6
    assert not x_adv.requires_grad
    assert is_unchanged(model, before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(x, pixels)


def test_the_seed_decides():
    _, (x, y) = digits()
    first, again, other = (
        autoattack_part(digits_net(), x[:9], y[:9], part="square", threat=THREATS["linf"], seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("part", PARTS)
def test_too_few_classes_are_refused(part):
    x, y = batch(classes=3)
    with pytest.raises(RecipeError) as caught:
        autoattack_part(smooth_net(classes=3), x, y, part=part, threat=THREATS["linf"])
    assert str(caught.value) == "expected 4 classes or more for autoattack, got 3; use pgd"


def test_a_channels_last_network_is_attacked_too():
    """Its gradients have no flat views, which the package takes."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    ).eval()
    model = model.to(memory_format=torch.channels_last)
    x = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    y = model(x).argmax(1)
    found = autoattack_part(model, x, y, part="apgd-ce", threat=Threat("linf", 0.1))
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert (model(found).argmax(1) != y).any()
