"""Other packages' attacks with the settings of ours, and the networks that both attack."""

import copy
import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qrobust.attacks import Scene, named
from qrobust.data import Images, to_unit
from qrobust.recipe import load
from qrobust.runs.run import Run
from qrobust.threat import Threat

from ..conftest import evidence
from ..data.helpers import shared
from .helpers import digits, digits_net, seeded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, about other packages
    evidence("torchattacks"), evidence("foolbox")
    import foolbox
    import torchattacks
    from foolbox.attacks.carlini_wagner import best_other_classes

# Few epochs of weak attacks: seconds for digits, a minute or two for CIFAR-10; both far above chance.
DEMO = ("train.epochs=6", "train.milestones=[4]", "train.attack.steps=3", "train.validation.steps=3")
CIFAR = (
    "train.epochs=5", "train.milestones=[4]", "train.factors=[0.1]", "train.batch_size=64", "train.lr=0.05",
    "train.attack.steps=2", "train.attack.step_size='3/255'", "train.validation.steps=2", "threat.eps='4/255'",
    "data.train_size=3000", "data.test_size=200", "data.crop=0",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A trained network in contiguous format, which the others need, its images, threats and CW's settings."""

    model: nn.Module
    images: Images
    threats: dict[str, Threat]
    cw: str

    @property
    def x(self):
        return to_unit(self.images.x, "cpu")

    @property
    def y(self):
        return self.images.y


@functools.cache
def small():
    """A naturally trained network of three layers."""
    _, (x, y) = digits()
    images = Images((x * 255).round().to(torch.uint8), y)
    return _target(digits_net(), images, linf=0.08, l2=0.35, cw="c=0.03:lr=0.05")


@functools.cache
def demo():
    """The demo's network, trained adversarially for six epochs; under twice its eps, where half of it breaks."""
    model, images = _trained("digits", *DEMO)
    return _target(model, images.take(slice(0, 300)), linf=40 / 255, l2=0.6, cw="c=1:lr=0.03")


@functools.cache
def cifar():
    """ResNet-20, trained adversarially on 2,700 images of CIFAR-10; under twice its eps."""
    root = shared("cifar-10-batches-py").parent
    model, images = _trained("cifar10-quick", *CIFAR, f"data.root='{root}'")
    return _target(model, images, linf=8 / 255, l2=0.75, cw="c=3:lr=0.01")


NETWORKS = {"small": small, "demo": demo, "cifar": cifar}


def _trained(recipe, *overrides):
    with tempfile.TemporaryDirectory() as folder:
        run = Run(load(recipe, ["bits=[32]", *overrides]), Path(folder) / "run")
        run.train()
        return run.network(32), run.dataset.test


def _target(model, images, *, linf, l2, cw):
    """Without black and white, where the arctanh of torchattacks' CW is infinite."""
    model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    threats = {"linf": Threat("linf", linf), "l2": Threat("l2", l2)}
    return Target(model, Images(images.x.clamp(1, 254), images.y), threats, cw)


@dataclass(frozen=True)
class Rival:
    """name: of our attack. perturb(model, x, y, eps, settings of ours): x_adv of another package."""

    name: str
    perturb: Callable[..., torch.Tensor]
    norm: str = "linf"

    def attack(self, target):
        """Ours, as recipes spell it."""
        more = f":{target.cw}" if self.name.startswith("cw-2") else ""
        return named(self.name + more, target.threats[self.norm])

    def ours(self, target):
        scene = Scene(target.model, target.threats[self.norm])
        return self.attack(target).perturb(scene, target.x, target.y, seeded())

    def theirs(self, target):
        settings, eps = self.attack(target).settings, target.threats[self.norm].eps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.perturb(target.model, target.x, target.y, eps, settings).detach()


def _torchattacks(kind: str):
    def perturb(model, x, y, eps, settings):
        return getattr(torchattacks, kind)(model, eps=eps, **_theirs(settings, step_size="alpha"))(x, y)

    return perturb


def _foolbox(kind: type):
    def perturb(model, x, y, eps, settings):
        attack = kind(**_theirs(settings, step_size="abs_stepsize"))
        return attack(_wrapped(model), x, y, epsilons=eps)[1]

    return perturb


def _theirs(settings, step_size):
    """Steps and step size, as far as the attack has them, by the other package's names."""
    names = {"steps": "steps", "step_size": step_size}
    return {names[key]: value for key, value in settings.items() if key in names}


def _wrapped(model):
    return foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")


def _cw_torchattacks(model, x, y, eps, settings):
    return torchattacks.CW(model, **settings)(x, y)


def _cw_foolbox(model, x, y, eps, settings):
    """One constant, no early end; images that it does not break come back black, here as they were."""
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=1, steps=settings["steps"], stepsize=settings["lr"], confidence=settings["kappa"],
        initial_const=settings["c"], abort_early=False,
    )  # fmt: skip
    found, _, _ = attack(_wrapped(model), x, y, epsilons=None)
    return torch.where(found.flatten(1).any(1)[:, None, None, None], found, x)


class LinfMargin(foolbox.attacks.LinfPGD):
    """CW-inf, which neither package has: foolbox's PGD, by the hook that it offers, on its own CW's margin."""

    def get_loss_fn(self, model, labels):
        def margin(x):
            logits = model(x)
            rows = range(len(labels))
            return (logits[rows, best_other_classes(logits, labels)] - logits[rows, labels]).sum()

        return margin


RIVALS = {
    "fgsm-torchattacks": Rival("fgsm", _torchattacks("FGSM")),
    "fgsm-foolbox": Rival("fgsm", _foolbox(foolbox.attacks.LinfFastGradientAttack)),
    "bim-torchattacks": Rival("bim-20", _torchattacks("BIM")),
    "bim-foolbox": Rival("bim-20", _foolbox(foolbox.attacks.LinfBasicIterativeAttack)),
    "pgd-torchattacks": Rival("pgd-20", _torchattacks("PGD")),
    "pgd-foolbox": Rival("pgd-20", _foolbox(foolbox.attacks.LinfPGD)),
    "tpgd-torchattacks": Rival("tpgd-20", _torchattacks("TPGD")),
    "cw-inf-foolbox": Rival("cw-inf-30", _foolbox(LinfMargin)),
    "pgd-l2-torchattacks": Rival("pgd-20", _torchattacks("PGDL2"), norm="l2"),
    "pgd-l2-foolbox": Rival("pgd-20", _foolbox(foolbox.attacks.L2PGD), norm="l2"),
    "cw-torchattacks": Rival("cw-20", _cw_torchattacks),
    "cw-foolbox": Rival("cw-20", _cw_foolbox),
}
