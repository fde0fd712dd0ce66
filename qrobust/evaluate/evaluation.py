"""Accuracy of a network, clean and under attacks, image by image; it goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .. import distributed, machine
from ..attacks import Attack, Scene
from ..data import Images, to_unit
from ..data.images import pixel_bytes
from ..errors import DataError, RecipeError
from ..progress import Bar, bar
from ..storage import digest, write_bytes
from ..threat import Threat
from .judge import check_logits, judge, predict
from .outcomes import CLEAN, UNREADABLE, Outcomes

UNKNOWN, WRONG, RIGHT = -1, 0, 1
SAVE_EVERY = 5.0  # seconds
Verdicts = npt.NDArray[np.int8]


@machine.exact_products()
def evaluate(
    model: nn.Module,
    images: Images,
    *,
    attacks: Sequence[Attack],
    threat: Threat,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    twin: nn.Module | None = None,
    state: Path | None = None,
    label: str = "evaluate",
) -> Outcomes:
    """Clean accuracy and accuracy under each attack on the first n images; the network ends in eval mode.

    images: uint8. n: None takes all. twin: the float network that transfer attacks craft on. state: a file
    that keeps verdicts batch by batch; with the same settings a stopped evaluation goes on from there.
    An image that is wrong when clean is wrong under every bounded attack, and no attack spends time on it.
    Every attack has a random stream of its own. Raises RecipeError for an empty list of attacks or a repeated one,
    DataError for no images, or more than there are; ModelError for an output that is no logits.
    """
    _check(attacks, images, n)
    images = images.take(slice(0, n))
    described = digest([[(a.name, a.settings) for a in attacks], threat.norm, threat.eps, seed, batch_size])
    outcomes = Outcomes(threat, seed, tuple(attacks), _fingerprint(images))
    networks = [_weights(network) for network in (model, twin) if network is not None]
    place = distributed.own(state) if state else None
    journal = _Journal(place, digest([described, outcomes.images, *networks]), len(images))
    scene = Scene(model, threat, twin, seed)
    model.eval()
    check_logits(model, to_unit(images.take(slice(0, batch_size)).x, machine.device_of(model), channels_last=True))
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
    journal: _Journal,
    before: npt.NDArray[np.bool_] | None,
    moving: Bar,
) -> npt.NDArray[np.bool_]:
    """The mask of one attack: each part sees the images that those before it left right."""
    right = np.ones(len(images), bool) if before is None else before.copy()
    name = CLEAN if attack is None else attack.name
    for part in ("",) if attack is None else attack.parts:
        verdicts = journal.verdicts(f"{name}/{part}")
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


class _Journal:
    """Verdicts so far, in a file that is written whole every few seconds; without a path, in memory."""

    def __init__(self, path: Path | None, key: str, n: int) -> None:
        self._path, self._key, self._n = path, key, n
        self._saved = time.monotonic()
        self._arrays: dict[str, Verdicts] = self._read(path) if path is not None and path.exists() else {}

    def verdicts(self, name: str) -> Verdicts:
        """int8 (n,): right, wrong or unknown; changes are kept by `save`."""
        return self._arrays.setdefault(name, np.full(self._n, UNKNOWN, np.int8))

    def save(self) -> None:
        """Write if the last time was a while ago."""
        if self._path is None or time.monotonic() - self._saved < SAVE_EVERY:
            return
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(self._key), **self._arrays)  # type: ignore[arg-type]
        write_bytes(self._path, buffer.getvalue())
        self._saved = time.monotonic()

    def _read(self, path: Path) -> dict[str, Verdicts]:
        """What the file holds if it is of these settings; a file of others, or none at all, is begun anew."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                return {name: stored[name] for name in stored if name != "key"} if stored["key"] == self._key else {}
        except UNREADABLE:
            return {}


def _check(attacks: Sequence[Attack], images: Images, n: int | None) -> None:
    if not attacks:
        raise RecipeError("expected at least one attack, got none; a clean accuracy says nothing of robustness")
    if repeated := [name for name, count in Counter(attack.name for attack in attacks).items() if count > 1]:
        raise RecipeError(f"expected each attack once, got {repeated[0]} more often; remove the repetition")
    if n is not None and not 1 <= n <= len(images):
        raise DataError(f"expected n in [1, {len(images)}], as many test images as there are, got {n}; change it")


def _fingerprint(images: Images) -> str:
    state = hashlib.sha256()
    for pixels in pixel_bytes(images):
        state.update(pixels)
    state.update(images.y.cpu().numpy().tobytes())
    return state.hexdigest()


def _weights(model: nn.Module) -> str:
    """sha256 over all parameters and buffers: verdicts belong to one network."""
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
