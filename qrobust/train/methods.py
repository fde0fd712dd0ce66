"""Training methods: what is attacked, and which terms the loss is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from .. import distributed, objectives
from ..attacks import PgdConfig, far_off, n_fgsm, nearby, pgd, tpgd
from ..errors import DataError, RecipeError
from ..recipe import Sar, Training, TrainingAttack
from ..threat import Threat


class Views:
    """A batch as a loss sees it; each pass through the network is made once, when first asked for.

    x, x_adv: (n, c, h, w) in [0,1]; x_adv is None where nothing is attacked. y: labels (n,), or shares of
    mixed labels (n, classes). taught: a teacher's logits of the clean images, where the method has one. class_weights:
    (classes,), of the classification term.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        x_adv: Tensor | None,
        taught: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        self.model, self.x, self.y, self.x_adv, self.taught = model, x, y, x_adv, taught
        self.class_weights = class_weights

    @cached_property
    def clean(self) -> Tensor:
        """Logits of the clean images, (n, classes)."""
        logits: Tensor = self.model(self.x)
        return logits.float()

    @cached_property
    def adversarial(self) -> Tensor:
        """Logits of the perturbed images, (n, classes)."""
        logits: Tensor = self.model(self.x_adv)
        return logits.float()

    @property
    def lesson(self) -> Tensor:
        """What the teacher says, (n, classes), for methods that have one."""
        assert self.taught is not None
        return self.taught

    def classify(self, logits: Tensor, settings: Training) -> Tensor:
        """The classification term: cross-entropy, or the binary one where the recipe mixes labels with it."""
        if settings.mix is not None and settings.mix.loss == "bce":
            return objectives.binary_cross_entropy(logits, self.y)
        return objectives.cross_entropy(logits, self.y, smoothing=settings.smoothing, class_weights=self.class_weights)


def class_weights(settings: Training, y: Tensor, classes: int) -> Tensor | None:
    """What the recipe weighs each class by, float32 (classes,) on the device of the training labels y (n,); None if by
    nothing.

    "balanced": w_k = n / (classes · n_k), n_k the labels that are k: every class weighs the same, and the mean over the
    labels is 1. Raises RecipeError for a list of another length, DataError for a class without images.
    """
    stated = settings.class_weights
    if stated is None:
        return None
    if stated != "balanced":
        if len(stated) != classes:
            raise RecipeError(
                f"expected a number a class, {classes}, in train.class_weights, got {len(stated)}; change it"
            )
        return torch.tensor(stated, device=y.device)
    counts = torch.bincount(y, minlength=classes)
    if not counts.all():
        raise DataError(f"expected training images of every class, got none of class {int(counts.argmin())}; add some")
    return (len(y) / (classes * counts)).float()


@dataclass(frozen=True)
class Method:
    """loss: of a batch. ascends: the attack's objective, None for no attack: cross-entropy to the labels ("ce") or to
    the teacher ("teacher"), or the divergence from the clean logits ("kl").

    judged: whose logits the training accuracy is counted on. teacher: whether it has one.
    """

    loss: Callable[[Views, Training], Tensor]
    ascends: Literal["ce", "kl", "teacher"] | None = "ce"
    judged: Literal["clean", "adversarial"] = "adversarial"
    teacher: bool = False


METHODS = {
    "natural": Method(lambda v, s: v.classify(v.clean, s), ascends=None, judged="clean"),
    "at": Method(lambda v, s: v.classify(v.adversarial, s)),
    "trades": Method(
        lambda v, s: objectives.trades(
            v.clean, v.adversarial, v.y, beta=s.beta, smoothing=s.smoothing, class_weights=v.class_weights
        ),
        ascends="kl",
    ),
    "mart": Method(
        lambda v, s: objectives.mart(v.clean, v.adversarial, v.y, beta=s.beta, class_weights=v.class_weights)
    ),
    "ard": Method(
        lambda v, s: objectives.ard(
            v.clean,
            v.adversarial,
            v.lesson,
            v.y,
            temperature=s.temperature,
            weight=s.share,
            class_weights=v.class_weights,
        ),
        teacher=True,
    ),
    "rslad": Method(
        lambda v, s: objectives.rslad(v.clean, v.adversarial, v.lesson, share=s.share), ascends="teacher", teacher=True
    ),
}


def aligned(views: Views, sar: Sar, average: nn.Module | None) -> Tensor:
    """The spectral term, weighted: SAR aligns to the network's own clean logits, SARWA to the average's.

    In form "batch" of the logits of all processes: the distance of a part is not a part of the distance.
    """
    if sar.reference == "model":
        reference = views.clean
    else:
        assert average is not None
        with torch.no_grad():
            reference = average(views.x).float()
    adversarial = views.adversarial
    if sar.form == "batch":
        reference, adversarial = distributed.gathered(torch.cat([reference, adversarial], dim=1)).chunk(2, dim=1)
    return sar.weight * objectives.sar(reference, adversarial, form=sar.form, distance=sar.distance)


Start = Callable[[Tensor, TrainingAttack, Threat, Generator], Tensor]  # of a whole batch x
Run = Callable[[nn.Module, Tensor, Tensor, Tensor, Threat, PgdConfig], Tensor]  # on x and y from a start


@dataclass(frozen=True)
class AttackKind:
    """An attack inside training: what it starts from, how it runs from there, and how long its step is.

    step_size: in units of eps, unless the recipe gives one. steps: None for the recipe's.
    """

    start: Start
    run: Run
    step_size: float
    steps: int | None = None


def _within(x: Tensor, how: TrainingAttack, threat: Threat, generator: Generator) -> Tensor:
    if not how.random_start:
        return x
    return nearby(x, threat, generator) if how.start == "near" else threat.random_start(x, generator)


def _pgd(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, threat: Threat, config: PgdConfig) -> Tensor:
    return pgd(model, x, y, threat=threat, config=config, start=start)


def _n_fgsm(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, threat: Threat, config: PgdConfig) -> Tensor:
    step, training = config.step_size, config.training
    return n_fgsm(model, x, y, threat=threat, step_size=step, start=start, training=training)


def _tpgd(model: nn.Module, x: Tensor, _: Tensor, start: Tensor, threat: Threat, config: PgdConfig) -> Tensor:
    return tpgd(model, x, threat=threat, config=config, start=start)


# Those of the recipe's `attack.kind`, and what a method that ascends "kl" runs instead.
ATTACK_KINDS = {
    "pgd": AttackKind(_within, _pgd, step_size=0.25),
    "fgsm-rs": AttackKind(_within, _pgd, step_size=1.25, steps=1),
    "n-fgsm": AttackKind(lambda x, _, t, g: far_off(x, t, g), _n_fgsm, step_size=1.0, steps=1),
    "kl": AttackKind(lambda x, _, t, g: nearby(x, t, g), _tpgd, step_size=0.25),
}


def attack_kind(settings: Training) -> AttackKind:
    """The attack that a method trains against."""
    return ATTACK_KINDS["kl" if METHODS[settings.method].ascends == "kl" else settings.attack.kind]


def draw_start(x: Tensor, settings: Training, threat: Threat, generator: Generator) -> Tensor:
    """Where the attack on a whole batch begins: drawn for all of it, so that its parts can be attacked apart.

    On a GPU the numbers are drawn there, from a seed that the generator gives: a batch's noise is slow to carry.
    """
    if x.is_cuda:
        generator = Generator(x.device).manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
    return attack_kind(settings).start(x, settings.attack, threat, generator)


def perturb(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, settings: Training, threat: Threat) -> Tensor:
    """x_adv for the loss, (n, c, h, w). y: what the attack ascends from: labels, or shares of them."""
    how, kind = settings.attack, attack_kind(settings)
    config = PgdConfig(
        steps=kind.steps or how.steps,
        step_size=kind.step_size * threat.eps if how.step_size is None else how.step_size,
        keep=how.keep,
        training=how.mode == "train",
    )
    return kind.run(model, x, y, start, threat, config)
