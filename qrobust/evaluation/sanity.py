"""Doubts: what must hold of an honest robustness number, and what it means when it does not.

    Subject(model, images, threat, …) ──examine──▶ Examination(measured, flags)

Which doubts there are is stated in `DOUBTS`, once; docs/flags.md has a paragraph for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from .. import devices
from . import sanity_measures as measures
from .sanity_measures import Subject

SubjectT = TypeVar("SubjectT", bound=Subject)


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
class Doubt(Generic[SubjectT]):
    """One thing to measure. limit: the most an honest network shows, in the unit of what is measured."""

    name: str
    measure: Callable[[SubjectT], float | None]
    limit: float
    reason: str
    hint: str
    cheap: bool = False

    def limit_for(self, n: int) -> float:
        """The limit on n images: a share is never held to less than one image and a half."""
        return max(self.limit, 1.5 / n) if self.limit < 1 else self.limit


@dataclass(frozen=True)
class Examination:
    """What was measured, by the doubt's name, and a flag for each that was above its limit.

    Doubts with nothing to ask, as of a twin where there is none, are not in `measured`.
    """

    measured: dict[str, float]
    flags: list[Flag]


@devices.exact_products()
def examine(subject: SubjectT, doubts: Sequence[Doubt[SubjectT]]) -> Examination:
    """Measure each of these doubts, once."""
    measured, flags = {}, []
    for one in doubts:
        value, limit = one.measure(subject), one.limit_for(len(subject.y))
        if value is None:
            continue
        measured[one.name] = value
        if not value <= limit:  # also true for NaN
            flags.append(Flag(one.name, value, limit, one.reason, one.hint))
    return Examination(measured, flags)


MASKED = "gradients do not lead the attack: use other losses, restarts, backward passes, and AutoAttack"
DOUBTS: tuple[Doubt[Subject], ...] = (
    Doubt("random-logits", measures.random_logits, 1e-4, "five runs on the same images give different logits",
          "fix the randomness, or average the gradient over it (EOT)", cheap=True),
    Doubt("batch-dependent", measures.batch_dependent, 1e-3, "an image's logits depend on the others in its batch",
          "put batch-norm into eval mode; an attacker's batch would decide the statistics", cheap=True),
    Doubt("probabilities", measures.probabilities, 0.0, "the output has one sum: softmax flattens the attack's loss",
          "return logits, what comes before softmax", cheap=True),
    Doubt("near-chance", measures.near_chance, 0.01, "always naming the commonest label is right as often",
          "look at labels, preprocessing and weights: the network says nothing of the images", cheap=True),
    Doubt("zero-gradient", measures.zero_gradient, 0.01,
          "images whose gradient is zero, or no number, cannot be attacked along it",
          "look for rounding without straight-through, saturated softmax, clamps; attack through a twin", cheap=True),
    Doubt("uneven-gradient", measures.uneven_gradient, 2.0, "some images have a hundred times the gradient of others",
          "look for squashed logits, saturated activations and steep front ends; attack through a twin", cheap=True),
    Doubt("one-place", measures.one_place, 0.2, "the label follows a few pixels into another image",
          "look at the pixels with most of the gradient: they give the label away", cheap=True),
    Doubt("turned-gradient", measures.turned_gradient, 0.9, "the gradient points elsewhere than the float twin's",
          "look at the backward pass of the quantisers; attack through the twin", cheap=True),
    Doubt("earlier-wins", measures.earlier, 0.02, "the attack steps past images that it had broken on its way",
          "keep the best step (pgd-20:keep=best), or use AutoAttack, which does", cheap=True),
    Doubt("numbers-part", measures.numbers_part, 0.05, "the worst case is far below what last-step attacks leave",
          "report the worst case; PGD's last step says little of this network", cheap=True),
    Doubt("loss-disagreement", measures.loss_disagreement, 0.01,
          "cross-entropy and margin attacks should agree within a point",
          "report the worst case of both; look at the scale of the logits"),
    Doubt("temperature", measures.temperature, 0.02, "scaling the logits lets cross-entropy attacks break more",
          MASKED),
    Doubt("not-converged", measures.not_converged, 0.01,
          "more steps and restarts still break more: no plateau is reached",
          "raise steps and restarts until the accuracy stands still"),
    Doubt("backward-variants", measures.backward_variants, 0.01, "another backward pass breaks more",
          "report the worst case over backward passes, the float twin's among them"),
    Doubt("transfer-wins", measures.transfer, 0.002, "examples from another width break what white-box ones do not",
          MASKED),
    Doubt("square-wins", measures.square, 0.002, "an attack without gradients breaks what those with them do not",
          MASKED),
    Doubt("noise-wins", measures.noise, 0.002, "random noise breaks what the attacks do not", MASKED),
    Doubt("one-step-wins", measures.one_step, 0.01, "one step is stronger than many", MASKED),
    Doubt("wide-ball", measures.wide_ball, 0.05, "at eight times eps hardly any image should survive", MASKED),
    Doubt("not-monotone", measures.not_monotone, 0.01, "accuracy rises where the attacker may do more", MASKED),
    Doubt("no-ball", measures.no_ball, 0.0, "with eps 0 the accuracy is not the clean one",
          "look for randomness or state in the network"),
)  # fmt: skip
CHEAP = tuple(one for one in DOUBTS if one.cheap)
