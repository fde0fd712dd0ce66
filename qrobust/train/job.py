"""What is asked of a training, and what changes with the epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..recipe import Data, Schedule, Training
from ..threat import Threat
from .listeners import Listener

DROP = 0.1  # the factor of a milestone where a recipe gives none
AUGMENTATION = {"crop", "resized_crop", "flip"}  # keys of a recipe's [data]; the others say which images
RISE = 0.4  # share of a cyclic schedule in which the rate rises
LOW, LOWEST = 1 / 25, 1 / 250_000  # where one cycle begins and ends, as torch's OneCycleLR, in units of lr


def learning_rate(schedule: Schedule, epoch: float) -> float:
    """The rate at an epoch, counted from 0, with its fraction between epochs.

    "step": lr times the factors of the milestones reached. "cosine": lr·(1 + cos(π·t))/2 at the share t of all
    epochs after the warm-up. "cyclic": a straight line from 0 to lr, and down to 0 (Wong et al. 2020,
    arXiv 2001.03994). Before all of them a straight line from 0 for `warmup` epochs; a cyclic rate without one rises
    for two fifths of all epochs. "one-cycle": half a cosine from lr/25 to lr for `pct_start` of all epochs, another to
    lr/250000: torch's OneCycleLR, whose steps are counted from 0 to the last, in shares of all (Smith and Topin 2019,
    arXiv 1708.07120).

    >>> learning_rate(Schedule(epochs=9, lr=1.0, milestones=(3, 6)), 3)
    0.1
    """
    share = epoch / schedule.epochs
    if schedule.shape == "one-cycle":
        return schedule.lr * _one_cycle(share, schedule.pct_start)
    rise = schedule.warmup / schedule.epochs or (RISE if schedule.shape == "cyclic" else 0)
    rate = schedule.lr * (share / rise) if share < rise else schedule.lr
    if schedule.shape == "step":
        return _dropped(rate, schedule, epoch)
    if share < rise:
        return rate
    if schedule.shape == "cyclic":
        return rate * ((1 - share) / (1 - rise))
    return rate * _fallen((share - rise) / (1 - rise))


def _one_cycle(share: float, rise: float) -> float:
    """The rate in units of the highest."""
    if share < rise:
        return 1 + (LOW - 1) * _fallen(share / rise)
    return LOWEST + (1 - LOWEST) * _fallen((share - rise) / (1 - rise))


def _fallen(share: float) -> float:
    """Half a cosine, from 1 to 0."""
    return (1 + math.cos(math.pi * share)) / 2


def _dropped(rate: float, schedule: Schedule, epoch: float) -> float:
    """A rate times the factors of the milestones reached."""
    factors = schedule.factors or (DROP,) * len(schedule.milestones)
    reached = zip(schedule.milestones, factors, strict=True)
    return math.prod((factor for milestone, factor in reached if epoch >= milestone), start=rate)


def first_epoch(start: int | str, schedule: Schedule) -> int:
    """The first epoch, counted from 0, of what starts at an epoch or at the "first-drop" of the rate."""
    return schedule.milestones[0] if isinstance(start, str) else start


@dataclass(frozen=True)
class Job:
    """What to train: schedule, method and attack, data settings, threat, seed.

    label: for people, and part of the random streams. key: digest of all that decides the result; a
    checkpoint with another key is refused. settings: what the key is a digest of, as nested JSON values, for the
    refusal to name what differs. folder: gets checkpoint/ and metrics.jsonl.
    precision: of the passes, as a recipe's `train.precision`. tensorboard: whether the folder gets its events too.
    on_event: a listener of the user's own, see `listeners`.
    """

    label: str
    key: str
    folder: Path
    schedule: Schedule
    training: Training
    data: Data
    threat: Threat
    seed: int
    precision: str = "float32"
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tensorboard: bool = False
    on_event: Listener | None = None

    def attacking(self, epoch: int) -> tuple[Training, Threat]:
        """How the attack of an epoch, counted from 0, is led, and within what: with a share of both in its warm-up.

        Warm-up of eps: Debenedetti et al. 2022, "A Light Recipe to Train Robust Vision Transformers", arXiv 2209.07399.
        """
        how = self.training.attack
        share = (epoch + 1) / (how.warmup + 1)
        if share >= 1:
            return self.training, self.threat
        step = None if how.step_size is None else share * how.step_size
        eased = self.training.model_copy(update={"attack": how.model_copy(update={"step_size": step})})
        return eased, self.threat.scaled(share)

    def started(self, part: str, epoch: int) -> bool:
        """Whether the schedule has a part ("sar", "awp", "average") and it has begun by this epoch, from 0."""
        settings = getattr(self.schedule, part)
        return settings is not None and epoch >= first_epoch(settings.start, self.schedule)
