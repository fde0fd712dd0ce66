"""What changes with the epoch."""

from __future__ import annotations

from ..recipe import Sar, Schedule

DROP = 0.1  # the factor of a milestone where a recipe gives none


def learning_rate(schedule: Schedule, epoch: int) -> float:
    """lr times the factors of the milestones reached; epochs count from 0.

    >>> learning_rate(Schedule(epochs=9, lr=1.0, milestones=(3, 6)), 3)
    0.1
    """
    factors = schedule.factors or (DROP,) * len(schedule.milestones)
    rate = schedule.lr
    for milestone, factor in zip(schedule.milestones, factors, strict=True):
        rate *= factor if epoch >= milestone else 1
    return rate


def sar_starts(sar: Sar, schedule: Schedule) -> int:
    """The first epoch with spectral alignment."""
    return schedule.milestones[0] if sar.start == "first-drop" else sar.start
