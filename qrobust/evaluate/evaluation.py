"""Accuracy of a network, clean and under attacks, image by image."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .. import machine
from ..attacks import Attack
from ..data import Images, to_unit
from ..errors import DataError, RecipeError
from ..progress import bar
from ..runtime import wilson
from ..storage import write_bytes, write_json
from ..threat import Threat
from .judge import judge

CLEAN = "clean"
Mask = npt.NDArray[np.bool_]


@dataclass
class Outcomes:
    """Which images a network gets right: `correct[name]` is a bool mask (n,) for "clean" and every attack."""

    threat: Threat
    seed: int
    attacks: tuple[Attack, ...]
    correct: dict[str, Mask] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.correct[CLEAN])

    def worst_case(self) -> Mask:
        """Right when clean and under every attack bounded by the threat; others (noise) are left out."""
        bounded = [self.correct[attack.name] for attack in self.attacks if attack.bounded]
        result: Mask = np.logical_and.reduce([self.correct[CLEAN], *bounded])
        return result

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: accuracies are shares of all n images, `ci95` Wilson intervals."""
        attacks = {
            attack.name: accuracy(self.correct[attack.name])
            | {"settings": attack.settings, "bounded": attack.bounded}
            | {"seconds": round(self.seconds[attack.name], 3)}
            for attack in self.attacks
        }
        return {
            "n": self.n,
            "seed": self.seed,
            "threat": {"norm": self.threat.norm, "eps": self.threat.eps},
            "clean": accuracy(self.correct[CLEAN]),
            "attacks": attacks,
            "worst_case": accuracy(self.worst_case()),
            "versions": machine.versions(),
            "hardware": machine.hardware(),
        }

    def save(self, path: Path, **more: Any) -> None:
        """`to_dict` and `more` as JSON, and the masks packed to bits in a .npz beside it."""
        buffer = io.BytesIO()
        packed = {name: np.packbits(mask) for name, mask in self.correct.items()}
        np.savez_compressed(buffer, n=np.int64(self.n), **packed)  # type: ignore[arg-type]
        write_bytes(path.with_suffix(".npz"), buffer.getvalue())
        write_json(path, self.to_dict() | more)


def accuracy(correct: Mask) -> dict[str, Any]:
    """Share of true entries, with its Wilson 95 % interval."""
    low, high = wilson(int(correct.sum()), len(correct))
    return {"accuracy": float(correct.mean()), "ci95": [low, high]}


def evaluate(
    model: nn.Module,
    images: Images,
    *,
    attacks: Sequence[Attack],
    threat: Threat,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    label: str = "evaluate",
) -> Outcomes:
    """Clean accuracy and accuracy under each attack on the first n images; the network ends in eval mode.

    images: uint8. n: None takes all. Every attack has a random stream of its own, fixed by seed and batch.
    Raises RecipeError for an empty list of attacks, DataError for no images, or more than there are.
    """
    if not attacks:
        raise RecipeError(
            "expected at least one attack, got none; a clean accuracy says nothing of robustness"
        )
    if n is not None and not 1 <= n <= len(images):
        raise DataError(
            f"expected n in [1, {len(images)}], as many test images as there are, got {n}; change it"
        )
    images = images.take(slice(0, n))
    outcomes = Outcomes(threat, seed, tuple(attacks))
    model.eval()
    with bar(label, (len(attacks) + 1) * len(images), "images") as moving:
        for attack in (None, *attacks):
            name = CLEAN if attack is None else attack.name
            moving.describe(f"{label}: {name}")
            started, masks = time.perf_counter(), []
            for index, batch in enumerate(images.batches(batch_size)):
                generator = machine.generator(seed, name, index)
                masks.append(_one_batch(model, batch, attack, threat, generator))
                moving.advance(len(batch))
            outcomes.correct[name] = np.concatenate(masks)
            outcomes.seconds[name] = time.perf_counter() - started
    return outcomes


def _one_batch(
    model: nn.Module, batch: Images, attack: Attack | None, threat: Threat, generator: torch.Generator
) -> Mask:
    x = to_unit(batch.x, machine.device(), channels_last=True)
    y = batch.y.to(x.device)
    x_adv = x if attack is None else attack.run(model, x, y, threat, generator)
    bounded = threat if attack is None or attack.bounded else None
    mask: Mask = judge(model, x, y, x_adv, bounded).cpu().numpy()
    return mask
