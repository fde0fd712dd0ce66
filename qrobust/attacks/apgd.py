"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690) that keeps best points, and the order in which classes are aimed at.

Of each image the point is kept where a wrong class led by most, whatever loss is ascended; what the network gets wrong
leaves the batch. Where AutoAttack itself is asked for, `auto` calls the package that others report with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.inference import input_gradient
from ..objectives import margin
from ..threat import Threat
from .gradient import check_output

MOMENTUM, ENOUGH = 0.75, 0.75  # of the paper: alpha, and rho, the share of steps that must rise
FIRST_MARK, LEAST_GAP, SHRINK = 0.22, 0.06, 0.03  # shares of all steps
FELL = 0.1  # share of a batch that must be broken before it shrinks: every new shape costs
TINY = 1e-12
CANDIDATES = 9  # classes that are looked at, those of the highest logits


class Found(NamedTuple):
    """Points x (n, c, h, w), and the images that passed the network for them, forward, and back too."""

    x: Tensor
    forwards: int
    gradients: int


def lead_of(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """z_t - z_y, (n,), for targets t; max_{k≠y} z_k - z_y without."""
    if target is None:
        return margin(logits, y)
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def _cross_entropy(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    return (1 if target is None else -1) * F.cross_entropy(logits, y if target is None else target, reduction="none")


def _ratio(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """The difference of logits ratio: the lead over a spread of the highest logits, which no scale changes."""
    top = logits.topk(3 if target is None else 4, dim=1).values
    spread = top[:, 0] - (top[:, 2] if target is None else top[:, 2:].mean(1))
    return lead_of(logits, y, target) / (spread + TINY)


Ascended = Callable[[Tensor, Tensor, Tensor | None], Tensor]
LOSSES: dict[str, Ascended] = {"margin": lead_of, "ce": _cross_entropy, "dlr": _ratio}


@dataclass(frozen=True)
class ApgdConfig:
    """steps: looks at the network, the one at the start included. loss: a key of LOSSES; "dlr" needs three classes,
    four with a target.
    """

    steps: int
    loss: str = "margin"


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    config: ApgdConfig,
    start: Tensor,
    target: Tensor | None = None,
) -> Found:
    """Of each image the point where a wrong class led by most, of those that APGD passed from its start.

    Inside `frozen`. x, start: (n, c, h, w) in [0,1], start within the threat or projected. y, target: labels (n,); the
    loss then leads to the target, but any wrong class counts as broken.
    """
    walk = _Walk(model, x, y, threat, LOSSES[config.loss], target)
    walk.begin(threat.project(start, x))
    marks = checkpoints(config.steps)
    for step in range(1, config.steps):
        if not walk.drop_broken():
            break
        walk.look(walk.ahead(step))
        if step in marks:
            walk.turn_back(step)
    return Found(walk.best, walk.passes, walk.passes)


def checkpoints(steps: int) -> set[int]:
    """Steps after which APGD may halve its step size: at 22 % of all, then ever sooner.

    >>> sorted(checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    found, before, at = set(), 0.0, FIRST_MARK
    while at <= 1:
        found.add(math.ceil(round(at * steps, 6)))
        before, at = at, at + max(at - before - SHRINK, LEAST_GAP)
    return found


@dataclass
class _Rows:
    """Of the images that are still attacked, a row each: which they are, where APGD is, where its loss was highest."""

    which: Tensor
    x: Tensor
    y: Tensor
    target: Tensor | None
    now: Tensor
    before: Tensor
    value: Tensor
    gradient: Tensor
    top: Tensor
    top_value: Tensor
    top_gradient: Tensor
    size: Tensor
    rises: Tensor  # steps since the last mark that raised the loss
    halved: Tensor  # at the last mark
    top_then: Tensor  # highest value at the last mark

    def take(self, rows: Tensor) -> None:
        """Keep these."""
        for one in fields(self):
            value = getattr(self, one.name)
            setattr(self, one.name, None if value is None else value[rows])


class _Walk:
    """One run of APGD on a batch."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, loss: Ascended, target: Tensor | None
    ) -> None:
        self.model, self.threat, self.loss, self.passes = model, threat, loss, 0
        none = torch.zeros(len(x), device=x.device)
        self.best, self.lead = x.clone(), torch.full_like(none, -torch.inf)
        self.broken, low = none > 0, torch.full_like(none, -torch.inf)
        self.rows = _Rows(torch.arange(len(x), device=x.device), x, y, target, x, x, low, x, x, low, x,
                          torch.full_like(none, 2 * threat.eps), none, self.broken, low)  # fmt: skip
        self.marked = 0

    def begin(self, start: Tensor) -> None:
        """The first look, whose loss is above the none before it: that is no rise."""
        self.look(start)
        self.rows.before, self.rows.top_then = self.rows.now, self.rows.value
        self.rows.rises = torch.zeros_like(self.rows.rises)

    def look(self, point: Tensor) -> None:
        """Go to a point: loss and gradient there, and whether it is the best one yet."""
        rows, point = self.rows, point.detach().requires_grad_(True)
        logits = self.model(point)
        check_output(logits, rows.y)
        logits = logits.float()
        value = self.loss(logits, rows.y, rows.target)
        gradient, risen = input_gradient(value.sum(), point), value.detach() > rows.value
        self.passes += len(point)
        rows.before, rows.now, rows.value, rows.gradient = rows.now, point.detach(), value.detach(), gradient
        rows.rises = rows.rises + risen
        self._offer(rows, logits.detach())
        self._raise_top(rows)

    def _offer(self, rows: _Rows, logits: Tensor) -> None:
        lead = margin(logits, rows.y)
        better = lead > self.lead[rows.which]
        at = rows.which[better]
        self.best[at], self.lead[at] = rows.now[better], lead[better]
        self.broken[rows.which[logits.argmax(1) != rows.y]] = True

    def _raise_top(self, rows: _Rows) -> None:
        up = rows.value > rows.top_value
        rows.top_value = torch.where(up, rows.value, rows.top_value)
        rows.top, rows.top_gradient = _where(up, rows.now, rows.top), _where(up, rows.gradient, rows.top_gradient)

    def drop_broken(self) -> bool:
        """Whether any image is left; those that are broken leave once they are a tenth."""
        left = ~self.broken[self.rows.which]
        if left.any() and left.float().mean() <= 1 - FELL:
            self.rows.take(left)
        return bool(left.any())

    def ahead(self, step: int) -> Tensor:
        """The next point: a step along the gradient, and from the second on a share of the step before."""
        rows, project = self.rows, self.threat.project
        size = _wide(rows.size, rows.now).to(rows.now.dtype)
        point = project(rows.now + size * self.threat.direction(rows.gradient), rows.x)
        if step > 1:
            point = rows.now + MOMENTUM * (point - rows.now) + (1 - MOMENTUM) * (rows.now - rows.before)
        return project(point, rows.x)

    def turn_back(self, step: int) -> None:
        """At a mark: where the loss rose too seldom, or not at all at this size, half of it, from the highest point."""
        rows, since = self.rows, step - self.marked
        stuck = (rows.rises < ENOUGH * since) | (~rows.halved & (rows.top_then >= rows.top_value))
        rows.size = torch.where(stuck, rows.size / 2, rows.size)
        rows.now, rows.gradient = _where(stuck, rows.top, rows.now), _where(stuck, rows.top_gradient, rows.gradient)
        rows.value = torch.where(stuck, rows.top_value, rows.value)
        rows.rises, rows.top_then, rows.halved = torch.zeros_like(rows.rises), rows.top_value, stuck
        self.marked = step


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _where(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(_wide(rows, first), first, second)


def linear_targets(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
    r"""Wrong classes (n, k), most promising first: those that a linear look says are nearest.

        score_t = (z_t - z_y) / ‖∇_x (z_t - z_y)‖*,   ‖·‖* the dual norm of the threat's

    Inside `frozen`. k: all wrong classes, at most `CANDIDATES`, those of the highest logits. One forward pass and k
    gradient passes an image. Source: MALT (Melamed et al. 2024, arXiv 2407.02240), section 4.
    """
    point = x.detach().clone().requires_grad_(True)
    logits = model(point)
    check_output(logits, y)
    logits = logits.float()
    rivals = logits.detach().scatter(1, y[:, None], -torch.inf)
    rivals = rivals.topk(min(CANDIDATES, logits.shape[1] - 1), dim=1).indices
    leads = logits.gather(1, rivals) - logits.gather(1, y[:, None])
    slopes = torch.stack([_dual_norm(lead, point, threat) for lead in leads.unbind(1)], 1)
    order = (leads.detach() / (slopes + TINY)).argsort(dim=1, descending=True, stable=True)
    found: Tensor = rivals.gather(1, order)
    return found


def _dual_norm(lead: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """How much a step of unit norm raises each lead, (n,)."""
    if not lead.requires_grad:
        return torch.zeros_like(lead)
    (gradient,) = torch.autograd.grad(lead.sum(), x, retain_graph=True, allow_unused=True)
    if gradient is None:
        return torch.zeros_like(lead).detach()
    gradient = gradient.nan_to_num()
    return (gradient * threat.direction(gradient)).flatten(1).sum(1).float()
