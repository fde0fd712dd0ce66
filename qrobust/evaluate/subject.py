"""A network under doubt: its images, and what several doubts ask of it, computed once and batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from .. import machine
from ..attacks import Scene, crafting, named
from ..attacks.crafting import ordinary, raw_gradient
from ..attacks.gradient import LOSSES, last_and_best
from ..data import Images, choose, to_unit
from ..data.images import check_batch_size
from ..threat import Threat
from .judge import judge, predict
from .outcomes import Outcomes

STEPS = 20
BATCH = 128
Craft = Callable[[Tensor, Tensor], Tensor]


class Subject:
    """The network under doubt on n images: x (n, c, h, w) in [0,1], y (n,), and masks that doubts share.

    model: ends in eval mode. n: how many of the images, at most, as `data.choose` takes them. twin: the float network
    behind a quantised one. others: further networks whose examples may transfer. outcomes: of the evaluation in doubt.
    batch_size: the most images that go through a network at once; memory depends on it, results only by rounding and
    by the order of random draws. Raises DataError for a batch size below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        threat: Threat,
        *,
        twin: nn.Module | None = None,
        others: Sequence[nn.Module] = (),
        outcomes: Outcomes | None = None,
        n: int = 200,
        seed: int = 0,
        batch_size: int = BATCH,
    ) -> None:
        check_batch_size(batch_size)
        self.model, self.threat, self.twin, self.others = model.eval(), threat, twin, others
        self.outcomes, self.seed, self.batch_size = outcomes, seed, batch_size
        images, _ = choose(images, n, seed)
        self.x = to_unit(images.x, machine.device_of(model), channels_last=True)
        self.y = images.y.to(self.x.device)

    def right(
        self,
        attack: str,
        *,
        model: nn.Module | None = None,
        threat: Threat | None = None,
        twin: nn.Module | None = None,
        among: Tensor | None = None,
    ) -> Tensor:
        """Mask (n,) of images right under a named attack, crafted on `model` (default: its own).

        among: mask (n,) of the images to attack (default: those right when clean); others are not right.
        """
        within = threat or self.threat
        chosen = named(attack, within)
        scene = Scene(model or self.model, within, twin or self.twin, self.seed)
        generator = machine.generator(self.seed, "doubt", attack)
        bound = within if chosen.bounded else None
        return self.survivors(lambda x, y: chosen.craft(scene, x, y, generator), bound, among)

    def survivors(self, craft: Craft, threat: Threat | None, among: Tensor | None = None) -> Tensor:
        """Mask (n,) of images that `craft(x, y)` leaves right; threat as in `judge`, among as in `right`."""
        left = self.clean.clone() if among is None else among.clone()
        for which in parts(left.nonzero()[:, 0], self.batch_size):
            x, y = self.x[which], self.y[which]
            left[which] = judge(self.model, x, y, craft(x, y), threat)
        return left

    @cached_property
    def clean(self) -> Tensor:
        """Right without an attack."""
        return torch.cat([predict(self.model, x) == y for x, y in self._batches()])

    @cached_property
    def ce(self) -> Tensor:
        """Right under the best points of PGD on the cross-entropy."""
        return self._ce_ends[1]

    @cached_property
    def margin(self) -> Tensor:
        """Right under the best points of PGD on the margin."""
        return self._ends("margin")[1]

    @cached_property
    def white_box(self) -> Tensor:
        """Right under both."""
        return self.ce & self.margin

    @cached_property
    def last_step(self) -> Tensor:
        """Right under the last points of PGD on the cross-entropy, from the starts of `ce`."""
        return self._ce_ends[0]

    @cached_property
    def gradient(self) -> Tensor:
        """Input gradient of the cross-entropy, (n, c, h, w)."""
        return self.gradient_of(self.model)

    def gradient_of(self, model: nn.Module, loss: str = "ce") -> Tensor:
        """∂loss_i/∂x_i of every image i under a network, this one or its twin; loss: "ce" or "margin"."""
        return torch.cat([_gradient(model, x, y, loss) for x, y in self._batches()])

    @cached_property
    def _ce_ends(self) -> tuple[Tensor, Tensor]:
        return self._ends("ce")

    def _ends(self, loss: str) -> tuple[Tensor, Tensor]:
        """Masks (n,) of images right under the last and under the best points of PGD, the same points for both."""
        generator, step = machine.generator(self.seed, "doubt", loss), self.threat.eps / 4
        last, best = self.clean.clone(), self.clean.clone()
        for which in parts(self.clean.nonzero()[:, 0], self.batch_size):
            x, y = self.x[which], self.y[which]
            found = last_and_best(self.model, x, y, threat=self.threat, steps=STEPS, step_size=step, loss=loss,
                                  generator=generator)  # fmt: skip
            for mask, x_adv in zip((last, best), found, strict=True):
                mask[which] = judge(self.model, x, y, x_adv, self.threat)
        return last, best

    def share(self, mask: Tensor) -> float:
        """Share of the n images."""
        return float(mask.float().mean())

    def broken(self, left: Tensor) -> float:
        """Share of the n images that stand under the white-box attacks and are not in the mask `left`."""
        return self.share(self.white_box & ~left)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(parts(self.x, self.batch_size), parts(self.y, self.batch_size), strict=True)


class Scaled(nn.Module):
    """A network with its logits multiplied; labels stay, softmax sharpens or flattens."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        """factor · logits."""
        scaled: Tensor = self.model(x) * self.factor
        return scaled


class ThroughTwin(nn.Module):
    """A network's logits with its twin's gradient: the way that rounding hides, the twin may show.

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420), the float network
    standing for the quantised one as a whole, not layer by layer.
    """

    def __init__(self, model: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.model, self.twin = model, twin

    def forward(self, x: Tensor) -> Tensor:
        """t(x) + constant, of value f(x) up to rounding: (n, c, h, w) in [0,1] → logits (n, classes)."""
        through: Tensor = self.twin(x)
        with torch.no_grad():
            offset: Tensor = self.model(x) - through
        return through + offset


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    with crafting(model):
        x, y = ordinary(x, y)
        x = x.clone().requires_grad_(True)
        return raw_gradient(LOSSES[loss](model(x), y), x)


def parts(rows: Tensor, size: int) -> Iterator[Tensor]:
    """At most `size` rows at a time, in order."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
