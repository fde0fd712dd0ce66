"""What is asked of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..recipe import Data, Schedule, Training
from ..threat import Threat
from .schedule import first_epoch


@dataclass(frozen=True)
class Job:
    """What to train: schedule, method and attack, data settings, threat, seed.

    label: for people, and part of the random streams. key: digest of all that decides the result; a
    checkpoint with another key is refused. settings: what the key is a digest of, as nested JSON values, for the
    refusal to name what differs. folder: gets checkpoint/, metrics.jsonl and TensorBoard events.
    precision: of the passes, as a recipe's `train.precision`.
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

    def started(self, part: str, epoch: int) -> bool:
        """Whether the schedule has a part ("sar", "awp", "average") and it has begun by this epoch, from 0."""
        settings = getattr(self.schedule, part)
        return settings is not None and epoch >= first_epoch(settings.start, self.schedule)
