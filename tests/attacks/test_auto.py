"""AutoAttack part by part is AutoAttack: the package's own driver gives the same, to the image."""

import random

import numpy as np
import pyautoattack
import pytest
import torch

from qrobust.attacks import Scene, autoattack_part, named
from qrobust.attacks.auto import NORMS, PARTS
from qrobust.data import Images, to_unit
from qrobust.evaluation import evaluate
from qrobust.objectives import margin
from qrobust.threat import Threat

from .helpers import batch, copy_of, digits, digits_net, is_unchanged, seeded, smooth_net

THREATS = {"linf": Threat("linf", 0.08), "l2": Threat("l2", 0.35)}
N, SEED = 60, 7


pytestmark = pytest.mark.usefixtures("few_steps")


def images(n=N):
    _, (x, y) = digits()
    return Images((x[:n] * 255).round().to(torch.uint8), y[:n])


def driven(x, y, threat, batch_size, *parts):
    """x_adv of the package's own driver, and which images it leaves right."""
    whole = pyautoattack.AutoAttack(digits_net(), norm=NORMS[threat.norm], eps=threat.eps, seed=SEED)
    whole.attacks_to_run = list(parts or PARTS)
    x_adv, labels = whole.run_standard_evaluation(x, y, batch_size=batch_size)
    return x_adv, labels == y


@pytest.mark.parametrize(
    ("norm", "batch_size"),
    [("linf", 32), ("l2", 500), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("linf", 500), ("l2", 16)))],
)
def test_an_evaluation_is_the_drivers(norm, batch_size):
    some, threat = images(), THREATS[norm]
    _, right = driven(to_unit(some.x, "cpu", channels_last=True), some.y, threat, batch_size)
    attacks = [named("autoattack", threat)]
    found = evaluate(digits_net(), some, attacks=attacks, threat=threat, seed=SEED, batch_size=batch_size)
    assert 5 < right.sum() < 55  # neither all nor nothing
    assert found.correct["autoattack"].tolist() == right.tolist()


@pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
def test_an_attack_is_the_drivers_to_the_pixel(threat):
    _, (x, y) = digits()
    right = digits_net()(x).argmax(1) == y
    x, y = x[right][:N], y[right][:N]
    expected, left = driven(x, y, threat, N)
    x_adv = named("autoattack", threat).perturb(Scene(digits_net(), threat, seed=SEED), x, y, seeded())
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


@pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("part", PARTS)
def test_every_part_breaks_few_classes_too(part, classes, threat):
    """The targeted DLR loss needs four: there the margin stands for it."""
    _, (x, y) = digits()
    last = y >= 10 - classes
    x, y = x[last][:30], y[last][:30] + classes - 10
    model = torch.nn.Sequential(digits_net(), torch.nn.Linear(10, classes, bias=False))
    model[1].weight.data = torch.eye(10)[-classes:]  # the logits of these classes alone
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    wide = threat.scaled(3)
    x_adv = autoattack_part(model, x, y, part=part, threat=wide)
    assert wide.distance(x_adv, x).max() <= wide.eps + 1e-6
    assert (model(x_adv).argmax(1) == y).float().mean() < 0.7


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


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "autoattack"])
def test_what_is_not_broken_is_left_where_the_loss_was_highest(name):
    """The package returns the clean image, of which a suite's replay would learn nothing."""
    _, (x, y) = digits()
    x, y, threat = x[:30], y[:30], Threat("linf", 0.03)
    clean = margin(digits_net()(x), y)
    found = named(name, threat).perturb(Scene(digits_net(), threat), x, y, seeded())
    lead = margin(digits_net()(found), y)
    left = lead < 0
    assert left.sum() > 10
    assert (threat.distance(found, x)[left] > 0.01).all()
    assert (lead > clean)[left].all()
    assert threat.distance(found, x).max() <= threat.eps + 1e-6


class Torn(torch.nn.Module):
    """A linear network whose gradient of the first pixel is no number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(48, 10)

    def forward(self, x):
        flat = x.flatten(1)
        return self.linear(flat) + 0 * (flat[:, :1] - flat[:, :1].detach()).sqrt()


@pytest.mark.parametrize("part", ["apgd-ce", "apgd-t", "fab-t"])
def test_a_pixel_without_a_gradient_stops_no_attack(part):
    """As in PGD: the others lead it."""
    model, x = Torn().eval(), torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    x_adv = autoattack_part(model, x, y, part=part, threat=Threat("linf", 0.3))
    assert torch.isfinite(x_adv).all()
    assert (model(x_adv).argmax(1) != y).float().mean() > 0.9
