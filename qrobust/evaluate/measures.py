"""What doubts measure: functions of a `Subject`, each a number that is small for an honest network.

None where a doubt has nothing to ask, as of a twin where there is none.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import machine
from ..threat import Threat
from .judge import are_probabilities, predict
from .statistics import at_least
from .subject import STEPS, Scaled, Subject, ThroughTwin, parts

TEMPERATURES = (0.01, 0.1, 10.0, 100.0)
WIDE = 8  # the sweep ends at this many eps, 64/255 for the usual 8/255
SEVERAL = 8  # images for doubts about one forward pass, and the fewest for a statistic of those that are right
CORNER, FEW = 0.01, 4  # share of pixels that must not decide the label; four hold it for up to 16 classes
SWAPS = 5
QUANTILES = (0.05, 0.95)
# An attack that returns its last point misses what it broke on its way, and what is compared with it looks strong.
CE, MARGIN, TRANSFER = (f"{name}-{STEPS}:keep=best" for name in ("pgd", "cw-inf", "transfer"))
CURVE = tuple(f"cw-inf-{effort}:keep=best" for effort in (f"{5 * STEPS}", f"{STEPS}x10", f"{5 * STEPS}x10"))
PUBLISHED = ("pgd", "bim", "cw-inf")  # families of many steps that return the last, unless told otherwise


@torch.no_grad()
def random_logits(subject: Subject) -> float:
    """The most that a logit changes over five runs on the same images, in standard deviations of the logits."""
    runs = torch.stack([subject.model(subject.x[:SEVERAL]) for _ in range(5)])
    return _relative(runs.amax(0) - runs.amin(0), runs[0])


@torch.no_grad()
def batch_dependent(subject: Subject) -> float:
    """The most that a logit changes with the other images of a batch, in standard deviations.

    Not with its size: a GPU has other kernels for another size, whose rounding moves a quantiser by a step.
    """
    x = subject.x[:SEVERAL]
    beside_itself, beside_negatives = (subject.model(torch.cat([x, others]))[: len(x)] for others in (x, 1 - x))
    return _relative(beside_itself - beside_negatives, beside_itself)


@torch.no_grad()
def probabilities(subject: Subject) -> float:
    """1 if the rows of the first batch's output are not negative and have one sum, else 0."""
    return float(are_probabilities(subject.model(subject.x[: subject.batch_size])))


def near_chance(subject: Subject) -> float:
    """The chance of being right as often by lot, each image with the share of the commonest label: P[Bin(n, p) ≥ k]."""
    n, right = len(subject.y), int(subject.clean.sum())
    commonest = int(subject.y.unique(return_counts=True)[1].max())  # type: ignore[no-untyped-call]
    return at_least(right, n, commonest / n)


def numbers_part(subject: Subject) -> float | None:
    """How far the evaluation's worst case is below what last-step attacks leave, as papers print them."""
    if subject.outcomes is None:
        return None
    attacks = [
        one for one in subject.outcomes.attacks if one.family in PUBLISHED and one.settings.get("keep") != "best"
    ]
    left = [float(subject.outcomes.correct[one.name].mean()) for one in attacks]
    return max(left) - float(subject.outcomes.worst_case().mean()) if left else None


def zero_gradient(subject: Subject) -> float:
    """Share of images whose cross-entropy has no gradient, or one that is not finite."""
    rows = subject.gradient.flatten(1)
    dead = (rows.abs().amax(1) == 0) | ~rows.isfinite().all(1)
    return subject.share(dead)


def uneven_gradient(subject: Subject) -> float | None:
    """log10 of the 95 % over the 5 % quantile of ‖∂margin/∂x‖₂, of images that are right and have a gradient.

    Of the margin, since the cross-entropy's gradient rightly vanishes where a network is sure.
    """
    gradient = subject.gradient_of(subject.model, "margin").flatten(1)
    norms = gradient.double().norm(dim=1)[subject.clean]  # squares of small floats would vanish
    norms = norms[norms.isfinite() & (norms > 0)]
    if len(norms) < SEVERAL:
        return None
    low, high = norms.log10().quantile(norms.new_tensor(QUANTILES)).tolist()
    return float(high - low)


def one_place(subject: Subject) -> float | None:
    """How often the label follows the few pixels with most of the gradient into an image of another class.

    Of pairs of images that are right. Of a resnet8 trained with the label in four of 64 pixels, 0.6 to 0.8 of the
    labels follow, of honest networks at most 0.08; how much of the gradient lies there differs by a factor two.
    """
    right, pixels = subject.clean.nonzero()[:, 0], _steepest(subject)
    if len(right) < SEVERAL:
        return None
    generator = machine.generator(subject.seed, "swap")
    donors = [right[torch.randperm(len(right), generator=generator).to(right.device)] for _ in range(SWAPS)]
    pairs = torch.stack([right.repeat(SWAPS), torch.cat(donors)], dim=1)
    pairs = pairs[subject.y[pairs[:, 0]] != subject.y[pairs[:, 1]]]
    if not len(pairs):
        return None
    followed = [_follows(subject, part, pixels) for part in parts(pairs, subject.batch_size)]
    return float(torch.cat(followed).float().mean())


def turned_gradient(subject: Subject) -> float | None:
    """One minus the median cosine with the twin's gradient."""
    if subject.twin is None:
        return None
    own, other = subject.gradient.nan_to_num(), subject.gradient_of(subject.twin).nan_to_num()
    cosine = F.cosine_similarity(own.flatten(1), other.flatten(1), dim=1)
    return 1 - float(cosine.median())


def loss_disagreement(subject: Subject) -> float:
    """Difference of the accuracies under PGD on cross-entropy and margin, beyond what chance makes of it.

    Of b images that only one of the two breaks, chance gives either side half: a difference of some √b images.
    """
    apart = int((subject.ce ^ subject.margin).sum())
    difference = abs(int(subject.ce.sum()) - int(subject.margin.sum()))
    return float(max(0.0, difference - 2 * apart**0.5) / len(subject.y))


def temperature(subject: Subject) -> float:
    """The most that cross-entropy PGD at another temperature breaks beyond the same attack at the network's own."""
    scaled = [subject.right(CE, model=Scaled(subject.model, factor)) for factor in TEMPERATURES]
    return max(0.0, *(subject.share(subject.ce) - subject.share(mask) for mask in scaled))


def not_converged(subject: Subject) -> float:
    """What the curve of longer attacks with more starts breaks in all, each on the images that are left.

    No step of a curve that only falls is larger than its whole fall: a last step above the limit shows here too.
    """
    left = subject.white_box
    for attack in CURVE:
        left = subject.right(attack, among=left)
    return subject.broken(left)


def earlier(subject: Subject) -> float:
    """What the points that PGD on the cross-entropy passes break, and its last ones do not."""
    return subject.share(subject.last_step & ~subject.ce)


def backward_variants(subject: Subject) -> float | None:
    """What other backward passes break: every form of straight-through, and the twin's."""
    from ..quant import STRAIGHT_THROUGH, quantizers, straight_through

    left = subject.white_box
    forms = STRAIGHT_THROUGH if any(one.masked for one in quantizers(subject.model)) else ()
    for form in forms:
        with straight_through(subject.model, form):
            left = subject.right(MARGIN, among=left)
    if subject.twin is not None:
        through = ThroughTwin(subject.model, subject.twin)
        for attack in (CE, MARGIN):
            left = subject.right(attack, model=through, among=left)
    return subject.broken(left) if forms or subject.twin is not None else None


def transfer(subject: Subject) -> float | None:
    """What examples crafted on the twin and on other networks break."""
    sources = [source for source in (subject.twin, *subject.others) if source is not None]
    left = subject.white_box
    for source in sources:
        left = subject.right(f"{TRANSFER}:loss=margin", twin=source, among=left)
    return subject.broken(left) if sources else None


def square(subject: Subject) -> float | None:
    """What Square breaks; it is defined in l-inf alone."""
    if subject.threat.norm != "linf":
        return None
    return subject.broken(subject.right("square-500", among=subject.white_box))


def noise(subject: Subject) -> float:
    """What five draws of uniform noise in the ball break."""
    left, generator = subject.white_box, machine.generator(subject.seed, "noise")
    for _ in range(5):
        left = subject.survivors(lambda x, _: subject.threat.random_start(x, generator), subject.threat, left)
    return subject.broken(left)


def one_step(subject: Subject) -> float:
    """By how much FGSM's accuracy is below PGD's."""
    return max(0.0, subject.share(subject.ce) - subject.share(subject.right("fgsm")))


def wide_ball(subject: Subject) -> float:
    """Accuracy under margin PGD in a ball that should leave nothing."""
    return subject.share(subject.right(MARGIN, threat=subject.threat.scaled(WIDE)))


def not_monotone(subject: Subject) -> float:
    """The largest rise of accuracy as the ball grows."""
    shares = [subject.share(subject.margin)]
    shares += [subject.share(subject.right(MARGIN, threat=subject.threat.scaled(k))) for k in (2, 4)]
    return float(max(0.0, np.diff(shares).max()))


def no_ball(subject: Subject) -> float:
    """Difference of the clean accuracy and that under FGSM with eps 0."""
    nothing = Threat(subject.threat.norm, 0.0, subject.threat.bounds)
    return abs(subject.share(subject.clean) - subject.share(subject.right("fgsm", threat=nothing)))


def _steepest(subject: Subject) -> Tensor:
    """Mask (h, w) of the pixels with most of the gradient's energy; every image counts the same."""
    energy = subject.gradient.nan_to_num().square().sum(1)
    share = (energy / energy.sum((1, 2), keepdim=True).clamp_min(1e-30)).mean(0)
    count = max(FEW, round(CORNER * share.numel()))
    mask = torch.zeros_like(share, dtype=torch.bool).flatten()
    mask[share.flatten().topk(min(count, share.numel())).indices] = True
    return mask.view_as(share)


def _follows(subject: Subject, pairs: Tensor, pixels: Tensor) -> Tensor:
    """Whether images pairs[:, 0] get the labels of pairs[:, 1] with their pixels, (pairs,)."""
    x = torch.where(pixels, subject.x[pairs[:, 1]], subject.x[pairs[:, 0]])
    return predict(subject.model, x) == subject.y[pairs[:, 1]]


def _relative(difference: Tensor, logits: Tensor) -> float:
    return float(difference.abs().max() / logits.std().clamp_min(1e-12))
