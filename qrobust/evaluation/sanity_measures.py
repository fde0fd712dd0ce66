"""What sanity checks measure of a network, each a number that is small for an honest one.

None where a check has nothing to ask, as of a float model where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import devices
from ..attacks import Attack, PgdConfig, Scene, named
from ..attacks.gradient import LOSSES, last_and_best
from ..attacks.registry import STRONG
from ..data import Images, choose, to_unit
from ..data.images import check_batch_size
from ..models.inference import frozen, ordinary, raw_gradient
from ..threat import Threat
from .accuracy import are_probabilities, judge, predict
from .outcomes import Mask, Outcomes, at_least

STEPS = 20
BATCH = 128
Perturb = Callable[[Tensor, Tensor], Tensor]


class CheckedModel:
    """A network that is checked on n images: x (n, c, h, w) in [0,1], y (n,), and masks that checks share.

    model: ends in eval mode. n: how many of the images, at most, as `data.choose` takes them. float_model: the one
    behind a quantised one. others: further networks whose examples may transfer. outcomes: of what is
    checked. batch_size: the most images that go through a network at once; memory depends on it, results only by
    rounding and by the order of random draws. Raises DataError for a batch size below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        threat: Threat,
        *,
        float_model: nn.Module | None = None,
        others: Sequence[nn.Module] = (),
        outcomes: Outcomes | None = None,
        n: int = 200,
        seed: int = 0,
        batch_size: int = BATCH,
    ) -> None:
        check_batch_size(batch_size)
        self.model, self.threat, self.float_model, self.others = model.eval(), threat, float_model, others
        self.outcomes, self.seed, self.batch_size = outcomes, seed, batch_size
        self._all = len(images)
        images, self._which = choose(images, n, seed)
        self.x = to_unit(images.x, devices.device_of(model), channels_last=True)
        self.y = images.y.to(self.x.device)

    def right(
        self,
        attack: str,
        *,
        model: nn.Module | None = None,
        threat: Threat | None = None,
        float_model: nn.Module | None = None,
        among: Tensor | None = None,
    ) -> Tensor:
        """Mask (n,) of images right under a named attack, made on `model` (default: its own).

        among: mask (n,) of the images to attack (default: those right when clean); others are not right.
        """
        within = threat or self.threat
        chosen = named(attack, within)
        scene = Scene(model or self.model, within, float_model or self.float_model, self.seed)
        generator = devices.generator(self.seed, "doubt", attack)
        bound = within if chosen.bounded else None
        return self.survivors(lambda x, y: chosen.perturb(scene, x, y, generator), bound, among)

    def survivors(self, perturb: Perturb, threat: Threat | None, among: Tensor | None = None) -> Tensor:
        """Mask (n,) of images that `perturb(x, y)` leaves right; threat as in `judge`, among as in `right`."""
        left = self.clean.clone() if among is None else among.clone()
        for which in parts(left.nonzero()[:, 0], self.batch_size):
            x, y = self.x[which], self.y[which]
            left[which] = judge(self.model, x, y, perturb(x, y), threat)
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
        """Right under both, and under every cascade `strong` of the outcomes."""
        left = self.ce & self.margin
        for mask in _masks(self.outcomes, lambda one: one.family == STRONG):
            left &= self.of_outcomes(mask)
        return left

    @cached_property
    def twice(self) -> Tensor:
        """Right under both from another start too: what an attack of another kind breaks of these, no luck of a start
        breaks (of a transformer of 8 bits, all that seemed to be the merit of other backward passes).
        """
        return self.right(CE, among=self.white_box) & self.right(MARGIN, among=self.white_box)

    @cached_property
    def last_step(self) -> Tensor:
        """Right under the last points of PGD on the cross-entropy, from the starts of `ce`."""
        return self._ce_ends[0]

    @cached_property
    def gradient(self) -> Tensor:
        """Input gradient of the cross-entropy, (n, c, h, w)."""
        return self.gradient_of(self.model)

    def gradient_of(self, model: nn.Module, loss: str = "ce") -> Tensor:
        """∂loss_i/∂x_i of every image i under a network, this one or its float model; loss: "ce" or "margin"."""
        return torch.cat([_gradient(model, x, y, loss) for x, y in self._batches()])

    @cached_property
    def _ce_ends(self) -> tuple[Tensor, Tensor]:
        return self._ends("ce")

    def _ends(self, loss: str) -> tuple[Tensor, Tensor]:
        """Masks (n,) of images right under the last and under the best points of PGD, the same points for both."""
        generator = devices.generator(self.seed, "doubt", loss)
        config = PgdConfig(steps=STEPS, step_size=self.threat.eps / 4, loss=loss)
        last, best = self.clean.clone(), self.clean.clone()
        for which in parts(self.clean.nonzero()[:, 0], self.batch_size):
            x, y = self.x[which], self.y[which]
            found = last_and_best(self.model, x, y, threat=self.threat, config=config, generator=generator)
            for mask, x_adv in zip((last, best), found, strict=True):
                mask[which] = judge(self.model, x, y, x_adv, self.threat)
        return last, best

    def of_outcomes(self, mask: Mask) -> Tensor:
        """A mask of the outcomes on the images that are checked, (n,); true of those that the outcomes do not have."""
        known = self.outcomes.indices if self.outcomes else None
        whole = np.ones(self._all, bool)
        whole[slice(len(mask)) if known is None else known] = mask
        left = torch.from_numpy(whole if self._which is None else whole[self._which.numpy()])
        return left.to(self.x.device)

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


class SurrogateGradient(nn.Module):
    """A network's logits with another's gradient: the way that rounding hides, a float model may show.

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420), the float network
    standing for the quantised one as a whole, not layer by layer.
    """

    def __init__(self, model: nn.Module, float_model: nn.Module) -> None:
        super().__init__()
        self.model, self.float_model = model, float_model

    def forward(self, x: Tensor) -> Tensor:
        """t(x) + constant, of value f(x) up to rounding: (n, c, h, w) in [0,1] → logits (n, classes)."""
        through: Tensor = self.float_model(x)
        with torch.no_grad():
            offset: Tensor = self.model(x) - through
        return through + offset


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    with frozen(model):
        x, y = ordinary(x, y)
        x = x.clone().requires_grad_(True)
        return raw_gradient(LOSSES[loss](model(x), y), x)


def parts(rows: Tensor, size: int) -> Iterator[Tensor]:
    """At most `size` rows at a time, in order."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


TEMPERATURES = (0.01, 0.1)
WIDE = 8  # the sweep ends at this many eps, 64/255 for the usual 8/255
SEVERAL = 8  # images for checks of one forward pass, and the fewest for a statistic of those that are right
CORNER, FEW = 0.01, 4  # share of pixels that must not decide the label; four hold it for up to 16 classes
SWAPS = 5
QUANTILES = (0.05, 0.95)
# An attack that returns its last point misses what it broke on its way, and what is compared with it looks strong.
CE, MARGIN, TRANSFER = (f"{name}-{STEPS}:keep=best" for name in ("pgd", "cw-inf", "transfer"))
CURVE = tuple(f"cw-inf-{effort}:keep=best" for effort in (f"{5 * STEPS}", f"{STEPS}x10", f"{5 * STEPS}x10"))
PUBLISHED = ("pgd", "bim", "cw-inf")  # families of many steps that return the last, unless told otherwise


@torch.no_grad()
def random_logits(checked: CheckedModel) -> float:
    """The most that a logit changes over five runs on the same images, in standard deviations of the logits."""
    runs = torch.stack([checked.model(checked.x[:SEVERAL]) for _ in range(5)])
    return _relative(runs.amax(0) - runs.amin(0), runs[0])


@torch.no_grad()
def batch_dependent(checked: CheckedModel) -> float:
    """The most that a logit changes with the other images of a batch, in standard deviations.

    Not with its size: a GPU has other kernels for another size, whose rounding moves a quantiser by a step.
    """
    x = checked.x[:SEVERAL]
    beside_itself, beside_negatives = (checked.model(torch.cat([x, others]))[: len(x)] for others in (x, 1 - x))
    return _relative(beside_itself - beside_negatives, beside_itself)


@torch.no_grad()
def probabilities(checked: CheckedModel) -> float:
    """1 if the rows of the first batch's output are not negative and have one sum, else 0."""
    return float(are_probabilities(checked.model(checked.x[: checked.batch_size])))


def near_chance(checked: CheckedModel) -> float:
    """The chance of being right as often by lot, each image with the share of the commonest label: P[Bin(n, p) ≥ k]."""
    n, right = len(checked.y), int(checked.clean.sum())
    commonest = int(checked.y.unique(return_counts=True)[1].max())  # type: ignore[no-untyped-call]
    return at_least(right, n, commonest / n)


def images(checked: CheckedModel) -> int:
    """How many are checked."""
    return len(checked.y)


def weak_attacks(checked: CheckedModel) -> float | None:
    """Share of images in the worst case of the evaluation that PGD on the cross-entropy breaks."""
    if checked.outcomes is None:
        return None
    return checked.share(checked.of_outcomes(checked.outcomes.worst_case()) & ~checked.ce)


def last_step(checked: CheckedModel) -> float | None:
    """Share of images that stand at the last points of an attack as papers print it, and not in the worst case of the
    evaluation; of the attack that leaves most. Of PGD on the cross-entropy where the evaluation has none.
    """
    if checked.outcomes is None:
        return None
    worst, printed = checked.outcomes.worst_case(), _printed(checked.outcomes)
    if not printed:
        return checked.share(checked.last_step & ~checked.of_outcomes(worst))
    return max(float((left & ~worst).mean()) for left in printed)


def images_of_last_step(checked: CheckedModel) -> int:
    """Of how many images `last_step` is a share."""
    return checked.outcomes.n if checked.outcomes and _printed(checked.outcomes) else images(checked)


def _printed(outcomes: Outcomes | None) -> list[Mask]:
    """What last-step attacks of many steps leave."""
    return _masks(outcomes, lambda one: one.family in PUBLISHED and one.settings.get("keep") != "best")


def _masks(outcomes: Outcomes | None, which: Callable[[Attack], bool]) -> list[Mask]:
    return [] if outcomes is None else [outcomes.correct[one.name] for one in outcomes.attacks if which(one)]


def zero_gradient(checked: CheckedModel) -> float:
    """Share of images whose cross-entropy has no gradient, or one that is not finite."""
    rows = checked.gradient.flatten(1)
    dead = (rows.abs().amax(1) == 0) | ~rows.isfinite().all(1)
    return checked.share(dead)


def uneven_gradient(checked: CheckedModel) -> float | None:
    """log10 of the 95 % over the 5 % quantile of ‖∂margin/∂x‖₂, of images that are right and have a gradient.

    Of the margin, since the cross-entropy's gradient rightly vanishes where a network is sure.
    """
    gradient = checked.gradient_of(checked.model, "margin").flatten(1)
    norms = gradient.double().norm(dim=1)[checked.clean]  # squares of small floats would vanish
    norms = norms[norms.isfinite() & (norms > 0)]
    if len(norms) < SEVERAL:
        return None
    low, high = norms.log10().quantile(norms.new_tensor(QUANTILES)).tolist()
    return float(high - low)


def one_place(checked: CheckedModel) -> float | None:
    """How often the label follows the few pixels with most of the gradient into an image of another class.

    Of pairs of images that are right. Of a resnet8 trained with the label in four of 64 pixels, 0.6 to 0.8 of the
    labels follow, of honest networks at most 0.08; how much of the gradient lies there differs by a factor two.
    """
    right, pixels = checked.clean.nonzero()[:, 0], _steepest(checked)
    if len(right) < SEVERAL:
        return None
    generator = devices.generator(checked.seed, "swap")
    donors = [right[torch.randperm(len(right), generator=generator).to(right.device)] for _ in range(SWAPS)]
    pairs = torch.stack([right.repeat(SWAPS), torch.cat(donors)], dim=1)
    pairs = pairs[checked.y[pairs[:, 0]] != checked.y[pairs[:, 1]]]
    if not len(pairs):
        return None
    followed = [_follows(checked, part, pixels) for part in parts(pairs, checked.batch_size)]
    return float(torch.cat(followed).float().mean())


def turned_gradient(checked: CheckedModel) -> float | None:
    """One minus the median cosine with the float model's gradient."""
    if checked.float_model is None:
        return None
    own, other = checked.gradient.nan_to_num(), checked.gradient_of(checked.float_model).nan_to_num()
    cosine = F.cosine_similarity(own.flatten(1), other.flatten(1), dim=1)
    return 1 - float(cosine.median())


def loss_disagreement(checked: CheckedModel) -> float:
    """Difference of the accuracies under PGD on cross-entropy and margin, beyond what chance makes of it.

    Of b images that only one of the two breaks, chance gives either side half: a difference of some √b images.
    """
    apart = int((checked.ce ^ checked.margin).sum())
    difference = abs(int(checked.ce.sum()) - int(checked.margin.sum()))
    return float(max(0.0, difference - 2 * apart**0.5) / len(checked.y))


def temperature(checked: CheckedModel) -> float:
    """The most that cross-entropy PGD on flattened logits breaks beyond the same attack at the network's own scale.

    Not on sharpened ones: there cross-entropy becomes the margin, which breaks more of any network that is unsure, as
    a robust transformer is (15 of 360 images, of which the margin at its own scale breaks 14).
    """
    scaled = [checked.right(CE, model=Scaled(checked.model, factor)) for factor in TEMPERATURES]
    return max(0.0, *(checked.share(checked.ce) - checked.share(mask) for mask in scaled))


def not_converged(checked: CheckedModel) -> float:
    """What the curve of longer attacks with more starts breaks in all, each on the images that are left.

    No step of a curve that only falls is larger than its whole fall: a last step above the limit shows here too.
    """
    left = checked.white_box
    for attack in CURVE:
        left = checked.right(attack, among=left)
    return checked.broken(left)


def earlier(checked: CheckedModel) -> float:
    """What the points that PGD on the cross-entropy passes break, and its last ones do not."""
    return checked.share(checked.last_step & ~checked.ce)


def backward_variants(checked: CheckedModel) -> float | None:
    """What other backward passes break from starts from which the network's own does not: every form of
    straight-through, and the float model's.
    """
    from ..quant import STRAIGHT_THROUGH, quantizers, straight_through

    left = checked.twice
    forms = STRAIGHT_THROUGH if any(one.masked for one in quantizers(checked.model)) else ()
    for form in forms:
        with straight_through(checked.model, form):
            left = left & checked.right(MARGIN, among=checked.white_box)
    if checked.float_model is not None:
        through = SurrogateGradient(checked.model, checked.float_model)
        for attack in (CE, MARGIN):
            left = left & checked.right(attack, model=through, among=checked.white_box)
    return checked.share(checked.twice & ~left) if forms or checked.float_model is not None else None


def transfer(checked: CheckedModel) -> float | None:
    """What examples made on the float model and on other networks break."""
    sources = [source for source in (checked.float_model, *checked.others) if source is not None]
    left = checked.twice
    for source in sources:
        left = checked.right(f"{TRANSFER}:loss=margin", float_model=source, among=left)
    return checked.share(checked.twice & ~left) if sources else None


def square(checked: CheckedModel) -> float | None:
    """What Square breaks; it is defined in l-inf alone."""
    if checked.threat.norm != "linf":
        return None
    return checked.share(checked.twice & ~checked.right("square-500", among=checked.twice))


def noise(checked: CheckedModel) -> float:
    """What five draws of uniform noise in the ball break."""
    left, generator = checked.twice, devices.generator(checked.seed, "noise")
    for _ in range(5):
        left = checked.survivors(lambda x, _: checked.threat.random_start(x, generator), checked.threat, left)
    return checked.share(checked.twice & ~left)


def one_step(checked: CheckedModel) -> float:
    """By how much FGSM's accuracy is below PGD's."""
    return max(0.0, checked.share(checked.ce) - checked.share(checked.right("fgsm")))


def wide_ball(checked: CheckedModel) -> float:
    """Accuracy under margin PGD in a ball that should leave nothing."""
    return checked.share(checked.right(MARGIN, threat=checked.threat.scaled(WIDE)))


def not_monotone(checked: CheckedModel) -> float:
    """The largest rise of accuracy as the ball grows."""
    shares = [checked.share(checked.margin)]
    shares += [checked.share(checked.right(MARGIN, threat=checked.threat.scaled(k))) for k in (2, 4)]
    return float(max(0.0, np.diff(shares).max()))


def no_ball(checked: CheckedModel) -> float:
    """Difference of the clean accuracy and that under FGSM with eps 0."""
    nothing = Threat(checked.threat.norm, 0.0, checked.threat.bounds)
    return abs(checked.share(checked.clean) - checked.share(checked.right("fgsm", threat=nothing)))


def _steepest(checked: CheckedModel) -> Tensor:
    """Mask (h, w) of the pixels with most of the gradient's energy; every image counts the same."""
    energy = checked.gradient.nan_to_num().square().sum(1)
    share = (energy / energy.sum((1, 2), keepdim=True).clamp_min(1e-30)).mean(0)
    count = max(FEW, round(CORNER * share.numel()))
    mask = torch.zeros_like(share, dtype=torch.bool).flatten()
    mask[share.flatten().topk(min(count, share.numel())).indices] = True
    return mask.view_as(share)


def _follows(checked: CheckedModel, pairs: Tensor, pixels: Tensor) -> Tensor:
    """Whether images pairs[:, 0] get the labels of pairs[:, 1] with their pixels, (pairs,)."""
    x = torch.where(pixels, checked.x[pairs[:, 1]], checked.x[pairs[:, 0]])
    return predict(checked.model, x) == checked.y[pairs[:, 1]]


def _relative(difference: Tensor, logits: Tensor) -> float:
    return float(difference.abs().max() / logits.std().clamp_min(1e-12))
