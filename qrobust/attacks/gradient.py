"""Attacks that step along the gradient: one loop, and its named settings; noise, their baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..errors import DataError, ModelError, RecipeError, did_you_mean
from ..models.inference import frozen, input_gradient, ordinary
from ..objectives import margin
from ..threat import Threat

ROUNDING = 1e-6  # what resizing in float32 leaves beyond [0, 1]


def check_images(x: Tensor) -> None:
    """Raises DataError for images that are no floats in [0, 1]."""
    if not x.is_floating_point():
        raise DataError(f"expected float images in [0, 1], got {x.dtype}; divide 8-bit images by 255")
    if not x.numel() or _recording(x):
        return
    low, high = float(x.min()), float(x.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also true for NaN
        raise DataError(
            f"expected images in [0, 1], got [{low:.7g}, {high:.7g}]; pass unnormalised images, "
            "normalisation belongs inside the model"
        )


def check_output(logits: object, y: Tensor) -> None:
    """Raises ModelError for an output that is no logits (n, classes ≥ 2), DataError for labels out of range."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(y):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"expected logits of shape ({len(y)}, classes), got {got}; return the logits alone")
    if logits.shape[1] < 2:
        raise ModelError(
            f"expected logits of two classes or more, got {logits.shape[1]}; "
            "return one a class: torch.cat([torch.zeros_like(z), z], 1) for a single logit z"
        )
    if not len(y) or _recording(y):
        return
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= logits.shape[1]:
        wrong = low if low < 0 else high
        raise DataError(f"expected labels in [0, {logits.shape[1] - 1}], got {wrong}; number the classes from 0")


def _recording(tensor: Tensor) -> bool:
    """Whether nothing can be read back: while a CUDA graph is being recorded, and of shapes without values."""
    return tensor.is_meta or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def gaussian_noise(x: Tensor, *, std: float = 0.1, generator: Generator | None = None) -> Tensor:
    """x + N(0, std²), clipped to [0,1]. Not bounded by any eps.

    x: (n, c, h, w) in [0,1]. std: in units of [0,1]. Raises DataError for what are no such images.
    """
    check_images(x)
    source = x.device if generator is None else generator.device
    noise = torch.empty(x.shape, dtype=x.dtype, device=source).normal_(generator=generator)
    return (x + std * noise.to(x.device)).clamp(0, 1)


KEEPS = ("last", "best")
TPGD_START = 1e-3
N_FGSM_NOISE = 2  # times eps
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "ce": lambda logits, y: F.cross_entropy(logits, y, reduction="sum"),
    "margin": lambda logits, y: margin(logits, y).sum(),
}


@dataclass(frozen=True)
class PgdConfig:
    """Settings of PGD, and of the attacks that go its way.

    steps: of a start. step_size: in the units of `threat.eps`. restarts: starts, each on the images that those before
    it left right. random_start: within the threat, else x itself. loss: "ce", or "margin" (CW-inf). keep: what is
    returned of the points that an image passes, the "last", as published, or the "best", where a wrong class leads by
    most: on quantised networks the last step often steps past what an earlier one broke. training: batch-norm's mode
    during the attack. Raises RecipeError for another loss or keep, for no steps or starts, and for steps backwards.
    """

    steps: int = 20
    step_size: float = 2 / 255
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    keep: str = "last"
    training: bool = False

    def __post_init__(self) -> None:
        for key, known in (("loss", LOSSES), ("keep", KEEPS)):
            value = getattr(self, key)
            if value not in known:
                raise RecipeError(f"expected a {key}, got {value!r}{did_you_mean(value, known)}")
        for key, least in (("steps", 1), ("restarts", 1), ("step_size", 0)):
            number = getattr(self, key)
            if not number >= least:  # also true for NaN
                raise RecipeError(f"expected {key} of {least} or more, got {number:g}; else it is no attack")


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    config: PgdConfig = PgdConfig(),
    start: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    r"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083).

        x_{t+1} = project(x_t + step_size · direction(∇_x loss(f(x_t), y)))

    x: images (n, c, h, w) in [0,1]. y: labels (n,), or for "ce" shares of mixed labels (n, classes). start: images to
    begin the first of the restarts at, projected, instead of a random draw. Returns x_adv (n, c, h, w), within the
    threat.

    >>> from qrobust.threat import Threat
    >>> x, y, threat = torch.rand(2, 3, 1, 1), torch.tensor([0, 1]), Threat("linf", 8 / 255)
    >>> x_adv = pgd(nn.Flatten(), x, y, threat=threat, config=PgdConfig(steps=10, keep="best"))
    """
    check_images(x)
    with frozen(model, training=config.training):
        x, y = ordinary(x, y)
        x_adv, labels = x.clone(), y if y.dim() == 1 else y.argmax(1)
        start = None if start is None else threat.project(start, x)
        todo = torch.arange(len(x), device=x.device)
        for restart in range(config.restarts):
            if restart or start is None:
                start = _drawn(x[todo], threat, config, generator)
            best = _Best(start, labels[todo]) if config.keep == "best" else None
            last = _ascend(model, x[todo], y[todo], start, threat, config, best=best)
            x_adv[todo] = last if best is None else best.x
            if restart + 1 < config.restarts:
                with torch.no_grad():
                    todo = todo[model(x_adv[todo]).argmax(1) == labels[todo]]
            if not len(todo):
                break
    return x_adv


def last_and_best(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    config: PgdConfig = PgdConfig(),
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """What the first start of `pgd` gives under keep="last" and under "best", from the same points; y: labels (n,)."""
    check_images(x)
    with frozen(model, training=config.training):
        x, y = ordinary(x, y)
        start = _drawn(x, threat, config, generator)
        best = _Best(start, y)
        last = _ascend(model, x, y, start, threat, config, best=best)
    return last, best.x


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
    """One step of length eps from x (Goodfellow et al. 2015, arXiv 1412.6572).

    Shapes, ranges and errors as in `pgd`.
    """
    return bim(model, x, y, threat=threat, config=PgdConfig(steps=1, step_size=threat.eps))


def bim(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, config: PgdConfig = PgdConfig()) -> Tensor:
    """PGD from x itself (Kurakin et al. 2017, arXiv 1611.01236), whatever `random_start` says.

    Shapes, ranges and errors as in `pgd`.
    """
    return pgd(model, x, y, threat=threat, config=replace(config, random_start=False))


def tpgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    threat: Threat,
    config: PgdConfig = PgdConfig(),
    start: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    r"""The attack inside TRADES (Zhang et al. 2019, arXiv 1901.08573): ascends KL(f(x) ‖ f(x')), without labels.

    Starts `nearby`, where the KL's gradient is not yet zero. y is not used. Others as in `pgd`. Raises RecipeError for
    a config that sets more than steps, step_size and training.
    """
    check_images(x)
    if config != PgdConfig(config.steps, config.step_size, training=config.training):
        raise RecipeError(f"expected steps, step_size and training alone for tpgd, got {config}; leave the others out")
    labels = y if y is not None else torch.zeros(len(x), dtype=torch.long, device=x.device)
    with frozen(model, training=config.training):
        x, labels = ordinary(x, labels)
        start = nearby(x, threat, generator) if start is None else start
        with torch.no_grad():
            clean = F.softmax(model(x), dim=1)
        return _ascend(model, x, labels, start, threat, config, loss=_divergence(clean))


def nearby(x: Tensor, threat: Threat, generator: Generator | None = None) -> Tensor:
    """x + 0.001·N(0, 1), within the threat: where TPGD starts, whose gradient at x itself is zero.

    x: (n, c, h, w) in [0,1]; the result has its shape, dtype and device.
    """
    source = x.device if generator is None else generator.device
    noise = torch.empty(x.shape, dtype=x.dtype, device=source).normal_(generator=generator)
    return threat.project(x + TPGD_START * noise.to(x.device), x)


def n_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step_size: float | None = None,
    start: Tensor | None = None,
    training: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """One step from noise of twice eps, **not projected** back: for training only (de Jorge et al. 2022,
    arXiv 2202.01181), where it does not overfit to one step as FGSM does.

    step_size: None means eps. start: None means `far_off`. Others as in `pgd`; x_adv lies within 3 eps.
    """
    check_images(x)
    free = threat.scaled(N_FGSM_NOISE + 1)
    with frozen(model, training=training):
        x, y = ordinary(x, y)
        start = far_off(x, threat, generator) if start is None else start
        one_step = PgdConfig(steps=1, step_size=threat.eps if step_size is None else step_size)
        return _ascend(model, x, y, start, free, one_step)


def far_off(x: Tensor, threat: Threat, generator: Generator | None = None) -> Tensor:
    """A random point within twice eps: where N-FGSM takes its step, and the result may lie beyond the threat.

    x: (n, c, h, w) in [0,1]; the result has its shape, dtype and device.
    """
    return threat.scaled(N_FGSM_NOISE).random_start(x, generator)


def _divergence(clean: Tensor) -> Loss:
    return lambda logits, _: F.kl_div(F.log_softmax(logits, dim=1), clean, reduction="sum")


class _Best:
    """Of the points offered, each image's where a wrong class leads by most; ties: the first."""

    def __init__(self, start: Tensor, labels: Tensor) -> None:
        self.x, self.labels = start, labels
        self.lead = torch.full((len(labels),), -torch.inf, device=start.device)

    @torch.no_grad()
    def offer(self, x_adv: Tensor, logits: Tensor) -> None:
        lead = margin(logits, self.labels).to(self.lead.dtype)
        better = lead > self.lead
        self.lead = torch.where(better, lead, self.lead)
        self.x = torch.where(better.view(-1, *[1] * (x_adv.dim() - 1)), x_adv.detach(), self.x)


def _drawn(x: Tensor, threat: Threat, config: PgdConfig, generator: Generator | None) -> Tensor:
    return threat.random_start(x, generator) if config.random_start else x


def _ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: Threat,
    config: PgdConfig,
    *,
    loss: Loss | None = None,
    best: _Best | None = None,
) -> Tensor:
    """The last point of one start. loss: None for the config's."""
    ascended = LOSSES[config.loss] if loss is None else loss
    (x_adv,) = ordinary(start)
    for step in range(config.steps):
        x_adv = x_adv.detach().requires_grad_(True)
        logits = model(x_adv)
        if step == 0:
            check_output(logits, y)
        if best is not None:
            best.offer(x_adv, logits)
        gradient = input_gradient(ascended(logits, y), x_adv)
        with torch.no_grad():
            x_adv = threat.project(x_adv + config.step_size * threat.direction(gradient), x)
    if best is not None:
        with torch.no_grad():
            best.offer(x_adv, model(x_adv))
    return x_adv.detach()


INSIDE = 1 - 1e-6  # atanh is infinite at black and white


def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 20,
    c: float = 1.0,
    kappa: float = 0.0,
    lr: float = 0.01,
) -> Tensor:
    r"""Carlini and Wagner's L2 attack (2017, arXiv 1608.04644), with one constant c and no search for it.

        minimise over w:  ‖x' - x‖₂² + c · max(-margin(f(x'), y), -κ),   x' = (tanh w + 1) / 2

    by Adam from x itself. margin = max_{k≠y} z_k - z_y. Returns, per image, the nearest x' seen that the
    network gets wrong, or x. **Not bounded by any eps**: a robust accuracy under it compares with no other.

    x: images (n, c, h, w) in [0,1]. y: labels (n,). lr: of Adam, in the units of w.
    """
    check_images(x)
    with frozen(model):
        x, y = ordinary(x, y)
        best = x.to(torch.promote_types(x.dtype, torch.float32))  # in bf16, INSIDE would be 1
        nearest = torch.full((len(x),), float("inf"), dtype=best.dtype, device=x.device)
        w = torch.atanh((2 * best.clamp(0, 1) - 1) * INSIDE).requires_grad_(True)
        # Distances are to where w begins: else Adam would stretch the 1e-7 between it and x to a whole step.
        origin, best = (torch.tanh(w.detach()) + 1) / 2, best.clone()
        optimizer = torch.optim.Adam([w], lr=lr)
        for step in range(steps):
            candidate = (torch.tanh(w) + 1) / 2
            distance = (candidate - origin).flatten(1).square().sum(dim=1)
            logits = model(candidate.to(x.dtype))
            if step == 0:
                check_output(logits, y)
            lost = margin(logits, y)
            loss = distance.sum() + c * (-lost).clamp_min(-kappa).sum()
            w.grad = input_gradient(loss, w)
            with torch.no_grad():
                better = (lost > 0) & (distance < nearest)
                best[better], nearest[better] = candidate[better], distance[better]
            optimizer.step()
    return best.detach().to(x.dtype)
