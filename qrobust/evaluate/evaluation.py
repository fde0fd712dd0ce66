"""Accuracy of a network, clean and under attacks, image by image; it goes on where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .. import distributed, machine
from ..attacks import Attack, Scene, named
from ..attacks.auto import FEWEST_CLASSES
from ..data import Given, Images, as_images, choose, to_unit
from ..data.images import pixel_bytes
from ..errors import DataError, RecipeError
from ..progress import Bar, bar, note
from ..threat import Threat
from .journal import RIGHT, UNKNOWN, Journal, unknown
from .judge import check_logits, judge, predict
from .outcomes import CLEAN, Outcomes


@machine.exact_products()
def evaluate(
    model: nn.Module,
    images: Given,
    *,
    attacks: str | Sequence[Attack | str],
    threat: Threat,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    twin: nn.Module | None = None,
    state: Path | None = None,
    label: str = "evaluate",
) -> Outcomes:
    """Clean accuracy and accuracy under each attack on n images; the network ends in eval mode.

    images: `Images`, a pair (x, y), or a DataLoader of such pairs, as `data.as_images` takes them. attacks: or their
    names. n: how many, a stratified choice that hangs on the seed (`data.choose`); None takes all. twin: the float
    network that transfer attacks craft on. state: a file that keeps verdicts batch by batch; with the same settings
    and networks a stopped evaluation goes on from there.
    An image that is wrong when clean is wrong under every bounded attack, and no attack spends time on it.
    Every attack has a random stream of its own. Raises RecipeError for an empty list of attacks or a repeated one,
    DataError for no images, more than there are, or labels that the network has no class for; ModelError for an output
    that is no logits.
    """
    if not isinstance(threat, Threat):
        raise RecipeError(f"expected a Threat, got {threat!r}; pass qrobust.Threat('linf', 8 / 255)")
    attacks = _named(attacks, threat)
    images = as_images(images)
    _check(attacks, images, n)
    images, indices = choose(images, n, seed)
    outcomes = Outcomes(
        threat, seed, attacks, _fingerprint(images), indices=None if indices is None else indices.tolist()
    )
    scene = Scene(model, threat, twin, seed)
    model.eval()
    first = images.take(slice(0, batch_size))
    classes = check_logits(model, to_unit(first.x, machine.device_of(model), channels_last=True))
    _check_classes(images, classes, attacks)
    journal = Journal.of(scene, images, outcomes, batch_size, distributed.own(state) if state else None)
    passes = 1 + sum(len(attack.parts) for attack in attacks)
    with bar(label, passes * len(images), "images") as moving:
        for attack in (None, *attacks):
            name = CLEAN if attack is None else attack.name
            started = time.perf_counter()
            before = outcomes.correct.get(CLEAN) if attack is not None and attack.bounded else None
            outcomes.correct[name] = _under(scene, images, attack, batch_size, journal, before, moving)
            outcomes.seconds[name] = time.perf_counter() - started
    return outcomes


def _under(
    scene: Scene,
    images: Images,
    attack: Attack | None,
    batch_size: int,
    journal: Journal,
    before: npt.NDArray[np.bool_] | None,
    moving: Bar,
) -> npt.NDArray[np.bool_]:
    """The mask of one attack: each part sees the images that those before it left right."""
    right = np.ones(len(images), bool) if before is None else before.copy()
    name = CLEAN if attack is None else attack.name
    for part in ("",) if attack is None else attack.parts:
        # Clean verdicts cost little, and what a file says of them need not be believed.
        verdicts = unknown(len(images)) if attack is None else journal.verdicts(f"{name}/{part}")
        todo = np.flatnonzero(right)
        moving.describe(f"{name} {part}".strip())
        moving.advance(len(right) - len(todo))
        for start in range(distributed.rank() * batch_size, len(todo), distributed.world() * batch_size):
            which = todo[start : start + batch_size]
            if (verdicts[which] == UNKNOWN).any():
                generator = machine.generator(scene.seed, name, part, start)
                verdicts[which] = _one_batch(scene, images.take(torch.from_numpy(which)), attack, part, generator)
                journal.save()
            moving.advance(min(len(which) * distributed.world(), len(todo) - start))
        verdicts[:] = distributed.greatest(torch.from_numpy(verdicts).to(machine.device())).cpu().numpy()
        right[todo] = verdicts[todo] == RIGHT
    return right


def _one_batch(
    scene: Scene, batch: Images, attack: Attack | None, part: str, generator: torch.Generator
) -> npt.NDArray[np.bool_]:
    x = to_unit(batch.x, machine.device_of(scene.model), channels_last=True)
    y = batch.y.to(x.device)
    if attack is None:
        right = predict(scene.model, x) == y
    else:
        x_adv = attack.run(scene, x, y, generator, part)
        right = judge(scene.model, x, y, x_adv, scene.threat if attack.bounded else None)
    mask: npt.NDArray[np.bool_] = right.cpu().numpy()
    return mask


def _named(attacks: str | Sequence[Attack | str], threat: Threat) -> tuple[Attack, ...]:
    several = [attacks] if isinstance(attacks, str) else attacks
    return tuple(named(one, threat) if isinstance(one, str) else one for one in several)


def _check(attacks: Sequence[Attack], images: Images, n: int | None) -> None:
    if not attacks:
        raise RecipeError("expected at least one attack, got none; a clean accuracy says nothing of robustness")
    if repeated := [name for name, count in Counter(attack.name for attack in attacks).items() if count > 1]:
        raise RecipeError(f"expected each attack once, got {repeated[0]} more often; remove the repetition")
    if not len(images):
        raise DataError("expected at least one image, got none; give some")
    if n is not None and not 1 <= n <= len(images):
        raise DataError(f"expected n in [1, {len(images)}], as many test images as there are, got {n}; change it")


def _check_classes(images: Images, classes: int, attacks: Sequence[Attack]) -> None:
    low, high = int(images.y.min()), int(images.y.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(f"expected labels in [0, {classes - 1}], got {wrong}; number the classes from 0")
    if classes < FEWEST_CLASSES and any(attack.family in ("apgd-t", "autoattack") for attack in attacks):
        note(f"apgd-t: ascends the margin of {classes} classes; its own loss needs {FEWEST_CLASSES}")


def _fingerprint(images: Images) -> str:
    state = hashlib.sha256()
    for pixels in pixel_bytes(images):
        state.update(pixels)
    state.update(images.y.cpu().numpy().tobytes())
    return state.hexdigest()
