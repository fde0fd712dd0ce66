"""The only place where a perturbed image counts as right or wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attacks.checks import check_output
from ..errors import DataError, ModelError
from ..threat import Threat

ROUNDING = 1e-6  # float32 noise of a projection
SEVERAL = 8  # rows, for a sum that is no chance
MOST_APART = 0.25  # that quantisation explains, of the sum


@torch.no_grad()
def judge(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: Threat | None) -> Tensor:
    """Whether the network still gives label y to x_adv, a bool mask (n,).

    x, x_adv: (n, c, h, w). threat: x_adv is projected onto it first, whatever an attack promised; None only
    for perturbations without a bound (noise), which are clipped to [0,1]. Raises DataError for pixels that
    are no numbers, ModelError for an output that is no logits (n, classes) or not finite.
    """
    if x_adv.shape != x.shape:
        raise DataError(
            f"expected perturbed images of shape {tuple(x.shape)}, got {tuple(x_adv.shape)}; mend the attack"
        )
    if not torch.isfinite(x_adv).all():
        raise DataError("expected perturbed images of finite pixels, got NaN or infinity; mend the attack")
    x_adv = x_adv.clamp(0, 1) if threat is None else threat.project(x_adv, x)
    return predict(model, x_adv) == y


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Labels (n,) for images (n, c, h, w). Raises ModelError for an output that is no finite logits."""
    logits: Tensor = model(x)
    check_output(logits, torch.zeros(len(x), dtype=torch.long))
    if not torch.isfinite(logits).all():
        raise ModelError("expected finite logits, got NaN or infinity; the network has diverged")
    return logits.argmax(1)


@torch.no_grad()
def check_logits(model: nn.Module, x: Tensor) -> int:
    """The number of classes. Raises ModelError if the network does not take images x (n, c, h, w), or gives
    probabilities for them.

    Softmax flattens losses until gradients vanish; what then looks robust is not.
    """
    try:
        logits: Tensor = model(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # as torch says that sizes do not fit
        raise ModelError(
            f"expected a network that takes images {tuple(x.shape)} (n, c, h, w), got: {error}; pass its own size"
        ) from error
    predict(model, x)
    if are_probabilities(logits):
        total = float(logits.float().sum(dim=1).mean())
        raise ModelError(
            f"expected logits, got probabilities (rows sum to {total:.3g}); return what comes before softmax"
        )
    return logits.shape[1]


def are_probabilities(output: Tensor) -> bool:
    """Whether the rows of an output (n, classes) are not negative and all have one sum, within their quantisation.

    So of softmax in percent too, or in 8 bits, whose sums move by up to half a step a class. Fewer than eight rows may
    have one sum by chance: theirs must be 1 or 100.
    """
    rounding = max(1e-4, torch.finfo(output.dtype).eps)
    output = output.double()
    sums, step = output.sum(dim=1), _step(output)
    if output.min() < 0 or sums.min() <= 0:
        return False
    total = sums.median() if len(output) >= SEVERAL else sums.new_tensor((1.0, 100.0))
    apart = (sums[:, None] - total.view(1, -1)).abs() / total.view(1, -1)
    allowed = rounding + min(step * output.shape[1] / 2 / float(sums.median()), MOST_APART)
    return bool((apart <= allowed).all(dim=0).any())


def _step(output: Tensor) -> float:
    """The smallest difference of two values: the quantum, if there is one."""
    gaps = output.flatten().sort().values.diff()
    gaps = gaps[gaps > 0]
    return float(gaps.min()) if len(gaps) else 0.0
