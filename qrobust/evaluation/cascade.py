"""The cascade `strong` within an evaluation: announced, remembered after each part, and what each took added up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import zip_longest
from typing import Any

from .. import devices, distributed
from ..attacks import Attack, PartResult, Scene
from ..attacks.cascade import DONE, Arrays
from ..attacks.registry import STRONG
from ..data import Images, to_unit
from ..progress import Bar, note
from .journal import Journal

TOGETHER = 4  # batches that begin together: what is left of them fills one


def is_strong(attack: Attack | None) -> bool:
    """Whether an attack is a cascade."""
    return attack is not None and attack.family == STRONG


class Shown:
    """A cascade's memory that keeps nothing: a bar shows the last part."""

    def __init__(self, moving: Bar) -> None:
        self.moving = moving

    def load(self) -> Arrays:
        """Nothing."""
        return {}

    def save(self, arrays: Arrays, parts: Sequence[PartResult]) -> None:  # noqa: ARG002, a memory is given both
        """Behind the bar."""
        last = parts[-1]
        self.moving.describe(self.moving.label, f"{last.part}: {last.broken} of {last.tried}")


class _InJournal(Shown):
    """A cascade's memory, under a name in a journal."""

    def __init__(self, journal: Journal, name: str, moving: Bar) -> None:
        super().__init__(moving)
        self.journal, self.name = journal, name

    def load(self) -> Arrays:
        """What the journal has."""
        return self.journal.memory(self.name)

    def save(self, arrays: Arrays, parts: Sequence[PartResult]) -> None:
        """In the journal, which may wait a while before it is written."""
        super().save(arrays, parts)
        self.journal.remember(self.name, arrays)
        self.journal.save()

    def close(self) -> None:
        """The verdicts are there: of the points nothing is needed any more."""
        self.journal.remember(self.name, {key: one for key, one in self.load().items() if key == DONE})


@contextmanager
def remembering(scene: Scene, attack: Attack | None, journal: Journal, start: int, moving: Bar) -> Iterator[Scene]:
    """Inside, a scene in which a cascade on the images from `start` on goes on where it stopped; others as they are."""
    if attack is None or not is_strong(attack):
        yield scene
        return
    memory = _InJournal(journal, f"{attack.name}/{start}", moving)
    yield replace(scene, memory=memory)
    memory.close()


def remembered(journal: Journal, attack: Attack | None) -> list[PartResult]:
    """What each part of a cascade took, over all images and processes; none of another attack."""
    if attack is None or not is_strong(attack):
        return []
    ours = [json.loads(str(one[DONE])) for one in journal.memories(attack.name) if DONE in one]
    blocks = [block for process in distributed.everyones(ours) for block in process]
    return [_added([row for row in rows if row]) for rows in zip_longest(*blocks)]


def _added(rows: Sequence[dict[str, Any]]) -> PartResult:
    """One part on several blocks of images."""
    numbers = {key: sum(row[key] for row in rows) for key in rows[0] if key != "part"}
    return PartResult(rows[0]["part"], **numbers)


def announce(attack: Attack, scene: Scene, images: Images, n: int) -> None:
    """How long a cascade may take on n images, by two passes of these."""
    x = to_unit(images.x, devices.device_of(scene.model), channels_last=True)
    expected = attack.expect(scene, x, images.y.to(x.device))
    note(
        f"{attack.name}: {expected.forwards:,} forward and {expected.gradients:,} gradient passes an image that holds, "
        f"{timedelta(seconds=round(expected.seconds * n))} if all {n} do"
    )
