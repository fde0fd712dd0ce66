"""What the attack `strong` does, in which order: parts, and plans of them by the kind of network and the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count

from ..errors import RecipeError
from .apgd import CANDIDATES
from .auto import FEWEST_CLASSES

SQUARE = "square"
STARTS = ("image", "random", "near", "last", "best")
OWN, OTHER, LAST = 0, 1, -1  # places among the backward forms


@dataclass(frozen=True)
class Part:
    """One attack of the cascade, on the images that are still right.

    loss: one that APGD ascends, or "square". steps: of APGD, or queries. start: the "image", a "random" point, the best
    one of all parts ("best"), that with some of its pixels drawn anew ("near"), or where the part before ended
    ("last"). rank: of the class that it aims at, in the order of `linear_targets`; None for no class. form: place of
    the backward form among those that the network has.
    """

    loss: str
    steps: int
    start: str = "image"
    rank: int | None = None
    form: int = OWN

    def name(self, forms: Sequence[str]) -> str:
        """As results show it: `dlr-50, target 2, random, soft`."""
        target = None if self.rank is None else f"target {self.rank + 1}"
        form = None if self.form_of(forms) == forms[OWN] else self.form_of(forms)
        words = (f"{self.loss}-{self.steps}", target, None if self.start == "image" else self.start, form)
        return ", ".join(filter(None, words))

    def form_of(self, forms: Sequence[str]) -> str:
        """The backward form of these, of which there may be fewer than the part hopes for."""
        return forms[min(self.form, len(forms) - 1)]


FIRST = Part("margin", 30)
# Where gradients lead, they find all that AutoAttack finds within the first two; the rest is insurance.
FLOAT = (
    *(Part("margin", 30, rank=rank) for rank in range(3)),
    Part("ce", 50, "random"),
    Part("dlr", 50, "random"),
    *(Part("dlr", 50, "random", rank=rank) for rank in range(3)),
    Part(SQUARE, 200, "best"),
)
# Where rounding hides the way, Square goes on where each restart ended, another basin each time: from the best point
# ever it finds less, and gradients alone find little.
TURNS = (
    Part("margin", 50, "near"),
    Part("ce", 50, "random"),
    Part("margin", 50, "random", form=OTHER),
    Part("dlr", 50, "random", rank=0),
    Part("margin", 50, "near"),
    Part("dlr", 50, "random"),
    Part("margin", 50, "random", form=LAST),
)
ROUNDED = tuple(part for turn in TURNS for part in (turn, Part(SQUARE, 240, "last")))
QUICK = (Part("margin", 50, "near"), Part(SQUARE, 300, "best"))

LEAST = 3  # passes: one step and its verdict


def passes(steps: int) -> int:
    """Passes, forward and backward, of so many steps and their verdict.

    >>> passes(1) == LEAST
    True
    """
    return 2 * steps + 1


@dataclass(frozen=True)
class StrongConfig:
    """quick: a short plan, for epochs and demos. budget: the most passes, forward and backward, that an image takes;
    the plan is cut there, or goes round again with other starts; 0 for the plan as it is. batch_size: images at once.

    Raises RecipeError for less than one step.
    """

    quick: bool = False
    budget: int = 0
    batch_size: int = 250

    def __post_init__(self) -> None:
        if 0 < self.budget < LEAST:
            raise RecipeError(f"expected a budget of {LEAST} passes or more, got {self.budget}; else it is no attack")


def plan(config: StrongConfig, *, forms: int, classes: int) -> tuple[Part, ...]:
    """The parts for a network of so many backward forms, more than one where it rounds, and classes."""
    rounds, targets = QUICK if config.quick else ROUNDED if forms > 1 else FLOAT, _targets(classes)
    once = [part for part in rounds if part.rank is None or part.rank < targets]
    if not config.budget:
        return tuple(_fitting(part, classes) for part in (FIRST, *once))
    found = [replace(FIRST, steps=min(FIRST.steps, (config.budget - 1) // 2))]
    following = chain(once, _again(rounds))
    while sum(most_passes([*found, part := _fitting(next(following), classes)], classes)) <= config.budget:
        found.append(part)
    return tuple(found)


def most_passes(parts: Sequence[Part], classes: int) -> tuple[int, int]:
    """Forward and gradient passes of an image that nothing breaks: those of the parts, a verdict after each, one where
    Square starts, and one look along all targets before the first that aims.
    """
    gradients = sum(part.steps for part in parts if part.loss != SQUARE)
    forwards = sum(part.steps + (2 if part.loss == SQUARE else 1) for part in parts)
    aimed = any(part.rank is not None for part in parts)
    return forwards + aimed, gradients + aimed * _targets(classes)


def _again(rounds: Sequence[Part]) -> Iterator[Part]:
    """More rounds without end: at the next classes, and from random points where it was from the image."""
    several = len({part.rank for part in rounds if part.rank is not None})
    for turn in count(1):
        for part in rounds:
            rank = None if part.rank is None else part.rank + turn * several
            yield replace(part, rank=rank, start="random" if part.start == "image" else part.start)


def _targets(classes: int) -> int:
    return min(CANDIDATES, classes - 1)


def _fitting(part: Part, classes: int) -> Part:
    """At a class that there is; by the margin where a ratio takes more logits than there are."""
    rank = None if part.rank is None else part.rank % _targets(classes)
    fewest = FEWEST_CLASSES - (rank is None)
    return replace(part, rank=rank, loss="margin" if part.loss == "dlr" and classes < fewest else part.loss)
