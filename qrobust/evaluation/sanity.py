"""Sanity checks: what must hold of an honest robustness number, and what it means when it does not.

    CheckedModel(model, images, threat, …) ──check_sanity──▶ SanityReport(measured, flags)

Which there are is stated in `SANITY_CHECKS`, once; docs/flags.md has a paragraph for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from .. import devices
from . import sanity_measures as measures
from .outcomes import most_by_chance
from .sanity_measures import CheckedModel

CheckedT = TypeVar("CheckedT", bound=CheckedModel)


@dataclass(frozen=True)
class Flag:
    """A sanity check that failed: what was measured, what it should be at most, why it matters, what to do."""

    name: str
    measured: float
    limit: float
    reason: str
    hint: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class SanityCheck(Generic[CheckedT]):
    """One thing to measure. limit: the most an honest network shows, in the unit of what is measured. images: of how
    many images that is a share; None for what is no share of images.
    """

    name: str
    measure: Callable[[CheckedT], float | None]
    limit: float
    reason: str
    hint: str
    cheap: bool = False
    images: Callable[[CheckedT], int] | None = measures.images

    def limit_for(self, checked: CheckedT) -> float:
        """The limit on so many images: of a share, the most that chance makes of it in 19 of 20 draws of them."""
        if self.images is None:
            return self.limit
        n = self.images(checked)
        return most_by_chance(n, self.limit) / n


@dataclass(frozen=True)
class SanityReport:
    """What was measured, by the check's name, and a flag for each that was above its limit.

    Checks with nothing to ask, as of a float model where there is none, are not in `measured`.
    """

    measured: dict[str, float]
    flags: list[Flag]


@devices.exact_products()
def check_sanity(checked: CheckedT, checks: Sequence[SanityCheck[CheckedT]]) -> SanityReport:
    """Measure each of these, once."""
    measured, flags = {}, []
    for one in checks:
        value = one.measure(checked)
        if value is None:
            continue
        measured[one.name], limit = value, one.limit_for(checked)
        if not value <= limit:  # also true for NaN
            flags.append(Flag(one.name, value, limit, one.reason, one.hint))
    return SanityReport(measured, flags)


MASKED = "gradients do not lead the attack: use other losses, restarts, backward passes, strong and AutoAttack"
SANITY_CHECKS: tuple[SanityCheck[CheckedModel], ...] = (
    SanityCheck("random-logits", measures.random_logits, 1e-4, "five runs on the same images give different logits",
          "fix the randomness, or average the gradient over it (EOT)", cheap=True, images=None),
    SanityCheck("batch-dependent", measures.batch_dependent, 1e-3,
          "an image's logits depend on the others in its batch",
          "put batch-norm into eval mode; an attacker's batch would decide the statistics", cheap=True, images=None),
    SanityCheck("probabilities", measures.probabilities, 0.0,
          "the output has one sum: softmax flattens the attack's loss",
          "return logits, what comes before softmax", cheap=True, images=None),
    SanityCheck("near-chance", measures.near_chance, 0.01, "always naming the commonest label is right as often",
          "look at labels, preprocessing and weights: the network says nothing of the images", cheap=True, images=None),
    SanityCheck("zero-gradient", measures.zero_gradient, 0.01,
          "images whose gradient is zero, or no number, cannot be attacked along it",
          "look for rounding without straight-through, saturated softmax, clamps; attack through the float model",
          cheap=True),
    SanityCheck("uneven-gradient", measures.uneven_gradient, 2.0,
          "some images have a hundred times the gradient of others",
          "look for squashed logits, saturated activations and steep front ends; attack through the float model",
          cheap=True, images=None),
    SanityCheck("one-place", measures.one_place, 0.2, "the label follows a few pixels into another image",
          "look at the pixels with most of the gradient: they give the label away", cheap=True, images=None),
    SanityCheck("turned-gradient", measures.turned_gradient, 0.9,
          "the gradient points elsewhere than the float model's",
          "look at the backward pass of the quantisers; attack through the float model", cheap=True, images=None),
    SanityCheck("earlier-wins", measures.earlier, 0.02, "the attack steps past images that it had broken on its way",
          "keep the best step (pgd-20:keep=best), or use strong, which does", cheap=True),
    SanityCheck("weak-attacks", measures.weak_attacks, 0.02, "PGD-20 breaks what the evaluation's attacks leave",
          "evaluate with strong: fewer steps, transfer or noise say little of who attacks the network itself",
          cheap=True),
    SanityCheck("last-step", measures.last_step, 0.06, "the worst case is far below what last-step attacks leave",
          "report the worst case; PGD's last step says little of this network", cheap=True,
          images=measures.images_of_last_step),
    SanityCheck("loss-disagreement", measures.loss_disagreement, 0.05,
          "cross-entropy and margin attacks should agree within five points",
          "report the worst case of both; look at the scale of the logits", images=None),
    SanityCheck("temperature", measures.temperature, 0.02,
          "flattening the logits lets cross-entropy attacks break more", MASKED),
    SanityCheck("not-converged", measures.not_converged, 0.01,
          "more steps and restarts still break more: no plateau is reached",
          "raise steps and restarts until the accuracy stands still"),
    SanityCheck("backward-variants", measures.backward_variants, 0.01, "another backward pass breaks more",
          "report the worst case over backward passes, the float model's among them"),
    SanityCheck("transfer-wins", measures.transfer, 0.002,
          "examples from another width break what white-box ones do not",
          MASKED),
    SanityCheck("square-wins", measures.square, 0.002, "an attack without gradients breaks what those with them do not",
          MASKED),
    SanityCheck("noise-wins", measures.noise, 0.002, "random noise breaks what the attacks do not", MASKED),
    SanityCheck("one-step-wins", measures.one_step, 0.01, "one step is stronger than many", MASKED),
    SanityCheck("wide-ball", measures.wide_ball, 0.05, "at eight times eps hardly any image should survive", MASKED),
    SanityCheck("not-monotone", measures.not_monotone, 0.01, "accuracy rises where the attacker may do more", MASKED),
    SanityCheck("no-ball", measures.no_ball, 0.002, "with eps 0 the accuracy is not the clean one",
          "look for randomness or state in the network"),
)  # fmt: skip
CHEAP_CHECKS = tuple(one for one in SANITY_CHECKS if one.cheap)
