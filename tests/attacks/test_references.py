"""The same attacks in other packages: on the same network and images, with the same settings, ours are no weaker.

Sampling noise: if two attacks are equally strong, an image that one breaks and the other does not is a coin
toss. The one-sided exact McNemar test says how likely so many tosses against ours are; below one in a thousand,
ours is weaker. `pytest -rP` shows the accuracies.
"""

import functools

import pyautoattack
import pytest

from qrobust.attacks import named
from qrobust.evaluation import evaluate, judge, mcnemar, predict
from qrobust.threat import Threat

from .rivals import NETWORKS, RIVALS

UNLIKELY = 0.001
FARTHER = 1.01  # mean distance of CW, ours over theirs: what rounding may do on a network with kinks
SEED = 7
CIFAR = pytest.param("cifar", marks=pytest.mark.slow)
L2 = Threat("l2", 1.0)  # only measures


@functools.cache
def attacked(network, rival, own):
    """x_adv, and the mask of the images that are right, clean and perturbed."""
    target, rival = NETWORKS[network](), RIVALS[rival]
    x_adv = rival.ours(target) if own else rival.theirs(target)
    threat = target.threats[rival.norm] if rival.attack(target).bounded else None
    return x_adv, clean(target) & judge(target.model, target.x, target.y, x_adv, threat)


def clean(target):
    return predict(target.model, target.x) == target.y


def chance(ours, theirs):
    """P[as many images as now that only ours leaves right, or more], were both equally strong."""
    more, fewer = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return 1.0 if more <= fewer else mcnemar(more, fewer) / 2


def share(mask):
    return float(mask.float().mean())


FAST = {("small", rival) for rival in RIVALS}


@pytest.mark.parametrize(
    ("network", "rival"),
    [
        pytest.param(network, rival, marks=[] if (network, rival) in FAST else pytest.mark.slow)
        for network in NETWORKS
        for rival in RIVALS
    ],
)
def test_no_weaker(network, rival):
    right = share(clean(NETWORKS[network]()))
    (_, ours), (_, theirs) = (attacked(network, rival, own) for own in (True, False))
    print(f"{network} {rival}: clean {right:.3f}, ours {share(ours):.3f}, theirs {share(theirs):.3f}")
    assert right > 0.25  # a trained network; chance is 0.1
    assert 0.01 < share(ours) < right - 0.05  # an attack, and images that it leaves
    assert chance(ours, theirs) > UNLIKELY


@pytest.mark.parametrize("rival", ["cw-torchattacks", "cw-foolbox"])
@pytest.mark.parametrize("network", ["small", pytest.param("demo", marks=pytest.mark.slow), CIFAR])
def test_cw_is_no_farther(network, rival):
    target = NETWORKS[network]()
    (ours, left), (theirs, left_there) = (attacked(network, rival, own) for own in (True, False))
    both = clean(target) & ~left & ~left_there
    here, there = (float(L2.distance(x_adv, target.x)[both].mean()) for x_adv in (ours, theirs))
    print(f"{network} {rival}: L2 of {int(both.sum())} broken by both: ours {here:.4f}, theirs {there:.4f}")
    assert both.sum() > 10
    assert here <= FARTHER * there


@pytest.mark.slow
def test_a_weaker_attack_would_be_seen():
    target, strong = NETWORKS["demo"](), RIVALS["pgd-foolbox"]
    weak = RIVALS["fgsm-foolbox"]
    left = [judge(target.model, target.x, target.y, r.theirs(target), None) for r in (weak, strong)]
    assert chance(*left) < UNLIKELY
    assert chance(*reversed(left)) == 1.0


@pytest.fixture
def shorten(monkeypatch):
    """Call it for a tenth of AutoAttack's steps, in the driver and in our parts alike."""
    settled = pyautoattack.AutoAttack._set_version

    def shortened(self, version):
        settled(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10
        self.square.n_queries = 200

    return lambda: monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)


@pytest.mark.parametrize(
    ("network", "n", "full"),
    [
        pytest.param("demo", 24, False, marks=pytest.mark.slow),
        pytest.param("demo", 60, True, marks=pytest.mark.slow),
        pytest.param("cifar", 16, True, marks=pytest.mark.slow),
    ],
)
def test_autoattack_is_the_drivers_to_the_image(network, n, full, shorten):
    if not full:
        shorten()
    target = NETWORKS[network]()
    some, threat = target.images.take(slice(0, n)), target.threats["linf"]
    driver = pyautoattack.AutoAttack(target.model, norm="Linf", eps=threat.eps, seed=SEED, version="standard")
    _, labels = driver.run_standard_evaluation(target.x[:n], some.y, batch_size=n)
    attacks = [named("autoattack", threat)]
    found = evaluate(target.model, some, attacks=attacks, threat=threat, seed=SEED, batch_size=n)
    print(
        f"{network} autoattack, n {n}: clean {found.correct['clean'].mean():.3f}, "
        f"ours {found.correct['autoattack'].mean():.3f}, theirs {share(labels == some.y):.3f}"
    )
    assert found.correct["autoattack"].tolist() == (labels == some.y).tolist()
    assert 0 < found.correct["autoattack"].sum() < found.correct["clean"].sum()


@pytest.mark.slow
def test_the_cascade_leaves_no_more_than_autoattack():
    target = NETWORKS["demo"]()
    attacks, some = ["autoattack", "strong"], target.images.take(slice(0, 60))
    found = evaluate(target.model, some, attacks=attacks, threat=target.threats["linf"], seed=SEED)
    print({name: int(right.sum()) for name, right in found.correct.items()})
    assert found.correct["strong"].sum() <= found.correct["autoattack"].sum() < found.correct["clean"].sum()
    assert 5 * found.seconds["strong"] < found.seconds["autoattack"]
