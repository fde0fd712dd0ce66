"""Doubts: what must hold of an honest robustness number, and what it means when it does not.

Each doubt is a function of a `Subject` that returns what it measured. Which flags exist is stated in `DOUBTS`,
once; docs/flags.md has a paragraph for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import machine
from ..attacks import Attack, Scene, crafting, input_gradient, named
from ..data import Images, to_unit
from ..objectives import cross_entropy
from ..threat import Threat
from .judge import judge, predict

STEPS = 20
TEMPERATURES = (0.01, 0.1, 10.0, 100.0)
WIDE = 8  # the sweep ends at this many eps, 64/255 for the usual 8/255
SEVERAL = 8  # images for doubts about one forward pass
CORNER = 0.01  # share of pixels that must not hold most of the gradient


@dataclass(frozen=True)
class Flag:
    """A doubt that was not put to rest: what was measured, what it should be at most, why it matters, what to do."""

    name: str
    measured: float
    limit: float
    reason: str
    hint: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Doubt:
    """One thing to measure. limit: the most an honest network shows, in the unit of what is measured."""

    name: str
    measure: Callable[[Subject], float]
    limit: float
    reason: str
    hint: str
    cheap: bool = False


class Subject:
    """The network under doubt on n images: x (n, c, h, w) in [0,1], y (n,), and masks that doubts share.

    twin: the float network behind a quantised one. others: further networks whose examples may transfer.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        threat: Threat,
        twin: nn.Module | None = None,
        others: Sequence[nn.Module] = (),
        seed: int = 0,
    ) -> None:
        self.model, self.threat, self.twin, self.others, self.seed = model, threat, twin, others, seed
        self.x = to_unit(images.x, machine.device_of(model), channels_last=True)
        self.y = images.y.to(self.x.device)

    def right(
        self,
        attack: str,
        *,
        model: nn.Module | None = None,
        threat: Threat | None = None,
        twin: nn.Module | None = None,
    ) -> Tensor:
        """Mask (n,) of images right when clean and under a named attack, crafted on `model` (default: its own)."""
        within = threat or self.threat
        chosen: Attack = named(attack, within)
        scene = Scene(model or self.model, within, twin or self.twin, self.seed)
        x_adv = chosen.craft(scene, self.x, self.y, machine.generator(self.seed, "doubt", attack))
        return self.clean & judge(self.model, self.x, self.y, x_adv, within if chosen.bounded else None)

    @cached_property
    def clean(self) -> Tensor:
        """Right without an attack."""
        return predict(self.model, self.x) == self.y

    @cached_property
    def ce(self) -> Tensor:
        """Right under PGD on the cross-entropy."""
        return self.right(f"pgd-{STEPS}")

    @cached_property
    def margin(self) -> Tensor:
        """Right under PGD on the margin."""
        return self.right(f"cw-inf-{STEPS}")

    @cached_property
    def white_box(self) -> Tensor:
        """Right under both."""
        return self.ce & self.margin

    @cached_property
    def gradient(self) -> Tensor:
        """Input gradient of the cross-entropy, (n, c, h, w)."""
        return self.gradient_of(self.model)

    def gradient_of(self, model: nn.Module) -> Tensor:
        """That of a network, this one's or its twin's."""
        x = self.x.clone().requires_grad_(True)
        with crafting(model):
            return input_gradient(cross_entropy(model(x), self.y), x)

    def share(self, mask: Tensor) -> float:
        """Share of the n images."""
        return float(mask.float().mean())


class Scaled(nn.Module):
    """A network with its logits multiplied; labels stay, softmax sharpens or flattens."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        """factor · logits."""
        scaled: Tensor = self.model(x) * self.factor
        return scaled


def doubt(
    model: nn.Module,
    images: Images,
    *,
    threat: Threat,
    twin: nn.Module | None = None,
    others: Sequence[nn.Module] = (),
    n: int = 200,
    seed: int = 0,
    thorough: bool = True,
) -> list[Flag]:
    """The flags of a network on the first n images; an empty list says that no doubt was confirmed, no more.

    twin: the float network behind a quantised one. others: other widths of it, for transfer. thorough: all
    doubts, else the cheap ones.
    """
    subject = Subject(model.eval(), images.take(slice(0, n)), threat, twin, others, seed)
    return list(_flags(subject, [d for d in DOUBTS if thorough or d.cheap]))


def _flags(subject: Subject, doubts: Iterable[Doubt]) -> Iterable[Flag]:
    for one in doubts:
        measured = one.measure(subject)
        limit = max(one.limit, 1.5 / len(subject.y)) if one.limit < 1 else one.limit
        if not measured <= limit:  # also true for NaN
            yield Flag(one.name, measured, limit, one.reason, one.hint)


@torch.no_grad()
def _random_logits(subject: Subject) -> float:
    runs = torch.stack([subject.model(subject.x[:SEVERAL]) for _ in range(5)])
    return _relative(runs.amax(0) - runs.amin(0), runs[0])


@torch.no_grad()
def _batch_dependent(subject: Subject) -> float:
    alone = torch.cat([subject.model(subject.x[i : i + 1]) for i in range(SEVERAL)])
    return _relative(alone - subject.model(subject.x)[: len(alone)], alone)


@torch.no_grad()
def _probabilities(subject: Subject) -> float:
    output = subject.model(subject.x).float()
    return float(output.min() >= 0 and ((output.sum(1) - 1).abs() < 1e-4).all())


def _zero_gradient(subject: Subject) -> float:
    rows = subject.gradient.flatten(1)
    dead = (rows.abs().amax(1) == 0) | ~rows.isfinite().all(1)
    return subject.share(dead)


def _one_place(subject: Subject) -> float:
    """Share of the gradient's energy, over all images, in the best hundredth of the pixels."""
    energy = subject.gradient.nan_to_num().square().sum(1).flatten(1)
    energy = (energy / energy.sum(1, keepdim=True).clamp_min(1e-30)).mean(0)
    return float(energy.topk(max(1, round(CORNER * len(energy)))).values.sum())


def _turned_gradient(subject: Subject) -> float:
    """One minus the median cosine with the twin's gradient."""
    if subject.twin is None:
        return 0.0
    cosine = F.cosine_similarity(subject.gradient.flatten(1), subject.gradient_of(subject.twin).flatten(1), dim=1)
    return 1 - float(cosine.median())


def _loss_disagreement(subject: Subject) -> float:
    return abs(subject.share(subject.ce) - subject.share(subject.margin))


def _temperature(subject: Subject) -> float:
    """The most that cross-entropy PGD at another temperature breaks beyond the same attack at the network's own."""
    scaled = [subject.right(f"pgd-{STEPS}", model=Scaled(subject.model, factor)) for factor in TEMPERATURES]
    return max(0.0, *(subject.share(subject.ce) - subject.share(mask) for mask in scaled))


def _not_converged(subject: Subject) -> float:
    longer = subject.right(f"pgd-{5 * STEPS}x2") & subject.right(f"cw-inf-{5 * STEPS}x2")
    return subject.share(subject.white_box & ~longer)


def _backward_variants(subject: Subject) -> float:
    from ..quant import STRAIGHT_THROUGH, straight_through

    left = subject.white_box
    for form in STRAIGHT_THROUGH:
        with straight_through(subject.model, form):
            left = left & subject.right(f"cw-inf-{STEPS}")
    return subject.share(subject.white_box & ~left)


def _transfer(subject: Subject) -> float:
    left = subject.white_box
    for source in filter(None, (subject.twin, *subject.others)):
        left = left & subject.right(f"transfer-{STEPS}:loss=margin", twin=source.eval())
    return subject.share(subject.white_box & ~left)


def _square(subject: Subject) -> float:
    if subject.threat.norm != "linf":
        return 0.0
    return subject.share(subject.white_box & ~subject.right("square-500"))


def _noise(subject: Subject) -> float:
    """What uniform noise in the ball breaks that the white-box attacks left right."""
    left = subject.white_box
    for index in range(5):
        x_adv = subject.threat.random_start(subject.x, machine.generator(subject.seed, "noise", index))
        left = left & judge(subject.model, subject.x, subject.y, x_adv, subject.threat)
    return subject.share(subject.white_box & ~left)


def _one_step(subject: Subject) -> float:
    return max(0.0, subject.share(subject.ce) - subject.share(subject.right("fgsm")))


def _wide_ball(subject: Subject) -> float:
    return subject.share(subject.right(f"cw-inf-{STEPS}", threat=_widened(subject.threat, WIDE)))


def _not_monotone(subject: Subject) -> float:
    """The largest rise of accuracy as the ball grows."""
    shares = [subject.share(subject.margin)]
    shares += [subject.share(subject.right(f"cw-inf-{STEPS}", threat=_widened(subject.threat, k))) for k in (2, 4)]
    return float(max(0.0, np.diff(shares).max()))


def _no_ball(subject: Subject) -> float:
    nothing = Threat(subject.threat.norm, 0.0, subject.threat.bounds)
    return abs(subject.share(subject.clean) - subject.share(subject.right("fgsm", threat=nothing)))


def _widened(threat: Threat, factor: float) -> Threat:
    eps = threat.eps * factor
    return Threat(threat.norm, min(eps, 1.0) if threat.norm == "linf" else eps, threat.bounds)


def _relative(difference: Tensor, logits: Tensor) -> float:
    return float(difference.abs().max() / logits.std().clamp_min(1e-12))


MASKED = "gradients do not lead the attack: use other losses, restarts, backward passes, and AutoAttack"
DOUBTS: tuple[Doubt, ...] = (
    Doubt("random-logits", _random_logits, 1e-4, "five runs on the same images give different logits",
          "fix the randomness, or average the gradient over it (EOT)", cheap=True),
    Doubt("batch-dependent", _batch_dependent, 1e-3, "an image's logits depend on the batch it comes in",
          "put batch-norm into eval mode; an attacker's batch would decide the statistics", cheap=True),
    Doubt("probabilities", _probabilities, 0.0, "the output sums to one: softmax flattens the attack's loss",
          "return logits, what comes before softmax", cheap=True),
    Doubt("zero-gradient", _zero_gradient, 0.01, "images without a gradient cannot be attacked along it",
          "look for rounding without straight-through, saturated softmax, clamps; attack through a twin", cheap=True),
    Doubt("one-place", _one_place, 0.5, "most of the gradient lies in the same few pixels of every image",
          "look at these pixels: they may give the label away", cheap=True),
    Doubt("turned-gradient", _turned_gradient, 0.9, "the gradient points elsewhere than the float twin's",
          "look at the backward pass of the quantisers; attack through the twin", cheap=True),
    Doubt("loss-disagreement", _loss_disagreement, 0.01, "cross-entropy and margin attacks should agree within a point",
          "report the worst case of both; look at the scale of the logits"),
    Doubt("temperature", _temperature, 0.02, "scaling the logits lets cross-entropy attacks break more", MASKED),
    Doubt("not-converged", _not_converged, 0.01, "more steps and restarts still break more: no plateau is reached",
          "raise steps and restarts until the accuracy stands still"),
    Doubt("backward-variants", _backward_variants, 0.01, "another straight-through backward pass breaks more",
          "report the worst case over backward passes"),
    Doubt("transfer-wins", _transfer, 0.002, "examples from another width break what white-box ones do not", MASKED),
    Doubt("square-wins", _square, 0.002, "an attack without gradients breaks what those with them do not", MASKED),
    Doubt("noise-wins", _noise, 0.002, "random noise breaks what the attacks do not", MASKED),
    Doubt("one-step-wins", _one_step, 0.01, "one step is stronger than many", MASKED),
    Doubt("wide-ball", _wide_ball, 0.05, "at eight times eps hardly any image should survive", MASKED),
    Doubt("not-monotone", _not_monotone, 0.01, "accuracy rises where the attacker may do more", MASKED),
    Doubt("no-ball", _no_ball, 0.0, "with eps 0 the accuracy is not the clean one",
          "look for randomness or state in the network"),
)  # fmt: skip
