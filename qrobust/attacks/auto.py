"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690), by the package that RobustBench uses, and Square alone.

It is never implemented again here: its four parts are called one by one, each on the images that the parts
before left right, with the batches and seeds of its own driver. So the result is the same to the image, and
an evaluation can stop and go on between batches. With two or three classes, of which the targeted DLR loss has no
scale, `apgd-t` ascends the plain margin z_t - z_y instead, which the package does not offer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ..models.inference import frozen, ordinary
from ..runtime import square_attack
from ..threat import Threat
from .apgd import Found
from .gradient import check_images, check_output


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    queries: int = 5000,
    generator: Generator | None = None,
) -> Tensor:
    """The Square attack (Andriushchenko et al. 2020, arXiv 1912.00049), as it runs on an artifact.

    x: images (n, c, h, w) in [0,1]. y: labels (n,). queries: at most, an image.
    """
    check_images(x)
    with frozen(model):
        return _by_squares(model, x, y, threat, queries, generator).x


def square_from(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    queries: int,
    start: Tensor,
    generator: Generator | None = None,
) -> Found:
    """Square from where another attack ended, by smaller squares from the first: it finds what rounding hides there.

    Inside `frozen`. start: (n, c, h, w), within the threat. Others as in `square`.
    """
    return _by_squares(model, x, y, threat, queries, generator, start)


@torch.no_grad()
def _by_squares(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    queries: int,
    generator: Generator | None,
    start: Tensor | None = None,
) -> Found:
    seed = int(torch.randint(2**31, (1,), generator=generator))

    def array(images: Tensor) -> np.ndarray:
        result: np.ndarray = images.clamp(0, 1).contiguous().float().cpu().numpy()
        return result

    def logits(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(x.device, x.dtype)
        result: np.ndarray = model(batch).float().cpu().numpy()
        return result

    begin = None if start is None else array(start)
    found, _, used = square_attack(
        logits, array(x), y.cpu().numpy(), threat.eps, queries, seed, norm=threat.norm, start=begin
    )
    return Found(torch.from_numpy(found).to(x.device, x.dtype), len(x) + int(used.sum()), 0)


PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2"}
FEWEST_CLASSES = 4  # of the DLR loss, which divides by the first logit's lead over the third and fourth


def autoattack_part(model: nn.Module, x: Tensor, y: Tensor, *, part: str, threat: Threat, seed: int = 0) -> Tensor:
    """One part of AutoAttack's standard version on a batch; x_adv (n, c, h, w).

    part: one of PARTS. x: images (n, c, h, w) in [0,1]. y: labels (n,). The package returns what it could not break as
    it came; of the two parts that ascend a loss it is the point with the highest here, which a suite can replay.
    """
    check_images(x)
    # Not folded: its result shall be the package's own to the last bit.
    with frozen(model, fold=False), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        x, y = ordinary(x, y)
        with torch.no_grad():
            logits = model(x)
            check_output(logits, y)
        attacker = _attacker(_Asked(model, x.dtype), x, threat, seed, part, logits.shape[1])
        images = x.contiguous().float()
        highest = _Highest(attacker, images, logits.argmax(1) == y) if part.startswith("apgd") else None
        found: Tensor = attacker.perturb(images, y).detach()
        if highest is not None:
            found[highest.left] = highest.x[highest.left]
    return found.to(x.dtype)


class _CleanGradient(torch.autograd.Function):
    """The identity, whose gradient comes back contiguous, since the package takes flat views of it, and with 0 for NaN,
    as `input_gradient`'s.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return grads[0].contiguous().nan_to_num()


class _Asked(nn.Module):
    """A network as the package asks it: in float32, with a gradient that may be zero but is always there."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        clean: Tensor = _CleanGradient.apply(x)  # type: ignore[no-untyped-call]
        logits: Tensor = self.model(clean.to(self.dtype)).float()
        if clean.requires_grad and not logits.requires_grad:  # the network cuts the way back
            logits = logits + 0 * clean.flatten(1).sum(1, keepdim=True)
        return logits


class _Highest:
    """Watches an APGD of the package: of every image that is `left`, (n,), the point x where the loss was highest."""

    def __init__(self, attacker: Any, x: Tensor, right: Tensor) -> None:
        self.x, self.left = x.clone(), right.clone()
        self._loss = torch.full((len(x),), -torch.inf, device=x.device)
        self._run, attacker.attack_single_run = attacker.attack_single_run, self._watched

    def _watched(self, x: Tensor, y: Tensor, *more: Any) -> Any:
        """A run on the images that are left, as the package makes it."""
        found = points, still_right, loss, _ = self._run(x, y, *more)
        todo = self.left.nonzero()[:, 0]
        better = loss > self._loss[todo]
        self.x[todo[better]], self._loss[todo[better]] = points[better].detach(), loss[better].detach()
        self.left[todo] = still_right.bool()
        return found


def _margin_targeted(attacker: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """z_t - z_y, (n,), for the attacker's targets of the moment."""
    return lambda logits, y: (logits.gather(1, attacker.y_target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def _attacker(model: nn.Module, x: Tensor, threat: Threat, seed: int, part: str, classes: int) -> Any:
    from pyautoattack import AutoAttack

    whole = AutoAttack(model, norm=NORMS[threat.norm], eps=threat.eps, seed=seed, device=x.device)
    whole.apgd_targeted.n_target_classes = whole.fab.n_target_classes = min(9, classes - 1)
    if classes < FEWEST_CLASSES:
        whole.apgd_targeted.dlr_loss_targeted = _margin_targeted(whole.apgd_targeted)
    chosen = {
        "apgd-ce": whole.apgd,
        "apgd-t": whole.apgd_targeted,
        "fab-t": whole.fab,
        "square": whole.square,
    }[part]
    chosen.seed = seed
    if part == "apgd-ce":
        chosen.loss = "ce"
    if part == "fab-t":
        chosen.targeted = True
    return chosen
