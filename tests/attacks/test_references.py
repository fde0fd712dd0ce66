"""The same attacks in two other packages, on the same network with the same settings."""

import warnings

import pytest
import torch

from qrobust.attacks import bim, cw, fgsm, pgd
from qrobust.threat import Threat

from .helpers import digits, digits_net, seeded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, about other packages
    torchattacks = pytest.importorskip("torchattacks")
    foolbox = pytest.importorskip("foolbox")

THREAT, STEP = Threat("linf", 0.08), 0.02
NOISE = 3  # images of 200
OURS = {
    "fgsm": lambda model, x, y: fgsm(model, x, y, threat=THREAT),
    "bim": lambda model, x, y: bim(model, x, y, threat=THREAT, steps=20, step_size=STEP),
    "pgd": lambda model, x, y: pgd(model, x, y, threat=THREAT, steps=20, step_size=STEP, generator=seeded()),
    "cw": lambda model, x, y: cw(model, x, y, steps=30, c=0.03, lr=0.05),
}
THEIRS = {
    "fgsm": lambda model: torchattacks.FGSM(model, eps=THREAT.eps),
    "bim": lambda model: torchattacks.BIM(model, eps=THREAT.eps, alpha=STEP, steps=20),
    "pgd": lambda model: torchattacks.PGD(model, eps=THREAT.eps, alpha=STEP, steps=20, random_start=True),
    "cw": lambda model: torchattacks.CW(model, c=0.03, kappa=0, steps=30, lr=0.05),
}


def images():
    """200 digits without black and white, where the other CW's arctanh is infinite."""
    _, (x, y) = digits()
    return 0.1 + 0.8 * x, y


def broken(x_adv, y):
    """Mask of the images that the network gets wrong."""
    return digits_net()(x_adv).argmax(1) != y


@pytest.mark.parametrize("name", OURS)
def test_as_strong_as_torchattacks(name):
    (x, y), model = images(), digits_net()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = broken(THEIRS[name](model)(x, y), y)
    ours = broken(OURS[name](model, x, y), y)
    assert broken(x, y).sum() + 20 < ours.sum() < 180  # an attack, and images that it leaves
    assert abs(int(ours.sum()) - int(theirs.sum())) <= NOISE


def test_as_strong_as_foolbox():
    (x, y), model = images(), digits_net()
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=20, random_start=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, found, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=THREAT.eps)
    ours = broken(OURS["pgd"](model, x, y), y)
    assert abs(int(ours.sum()) - int(broken(found, y).sum())) <= NOISE
