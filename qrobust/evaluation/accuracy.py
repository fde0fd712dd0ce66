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
from torch import Tensor, nn

from .. import devices, distributed
from ..attacks import Attack, Scene, named
from ..attacks.auto import FEWEST_CLASSES
from ..attacks.gradient import check_output
from ..attacks.registry import STRONG
from ..data import Given, Images, as_images, choose, to_unit
from ..data.images import pixel_bytes
from ..errors import DataError, ModelError, RecipeError
from ..progress import Bar, bar, note
from ..threat import Threat
from .cascade import TOGETHER, announce, is_strong, remembered, remembering
from .journal import RIGHT, UNKNOWN, Journal, unknown
from .outcomes import CLEAN, Outcomes

ROUNDING = 1e-6  # float32 noise of a projection
SEVERAL = 8  # rows, for a sum that is no chance
ROUNDED = 2**-7  # what bfloat16 makes of two sums, whatever type they come in
MOST_APART = 0.25  # that quantisation explains, of the sum


@torch.no_grad()
def judge(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: Threat | None) -> Tensor:
    """Whether the network still gives label y to x_adv, a bool mask (n,).

    x, x_adv: (n, c, h, w). threat: x_adv is projected onto it first, whatever an attack promised; None only
    for perturbations without a bound (noise), which are clipped to [0,1]. Raises DataError for pixels that
    are no numbers, ModelError for an output that is no logits (n, classes) or not finite.
    """
    if x_adv.shape != x.shape:
        raise DataError(
            f"expected perturbed images of shape {tuple(x.shape)}, got {tuple(x_adv.shape)}; mend the attack"
        )
    if not torch.isfinite(x_adv).all():
        raise DataError("expected perturbed images of finite pixels, got NaN or infinity; mend the attack")
    x_adv = x_adv.clamp(0, 1) if threat is None else threat.project(x_adv, x)
    return predict(model, x_adv) == y


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Labels (n,) for images (n, c, h, w). Raises ModelError for an output that is no finite logits."""
    logits: Tensor = model(x)
    check_output(logits, torch.zeros(len(x), dtype=torch.long))
    if not torch.isfinite(logits).all():
        raise ModelError("expected finite logits, got NaN or infinity; the network has diverged")
    return logits.argmax(1)


@torch.no_grad()
def check_logits(model: nn.Module, x: Tensor) -> int:
    """The number of classes. Raises ModelError if the network does not take images x (n, c, h, w), or gives
    probabilities for them.

    Softmax flattens losses until gradients vanish; what then looks robust is not.
    """
    try:
        logits: Tensor = model(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # as torch says that sizes do not fit
        raise ModelError(
            f"expected a network that takes images {tuple(x.shape)} (n, c, h, w), got: {error}; pass its own size"
        ) from error
    predict(model, x)
    if are_probabilities(logits):
        total = float(logits.float().sum(dim=1).mean())
        raise ModelError(
            f"expected logits, got probabilities (rows sum to {total:.3g}); return what comes before softmax"
        )
    return logits.shape[1]


def are_probabilities(output: Tensor) -> bool:
    """Whether the rows of an output (n, classes) are not negative and all have one sum, within their quantisation.

    So of softmax in percent too, or in 8 bits, whose sums move by up to half a step a class. Fewer than eight rows may
    have one sum by chance: theirs must be 1 or 100.
    """
    output = output.double()
    sums, step = output.sum(dim=1), _step(output)
    if output.min() < 0 or sums.min() <= 0:
        return False
    total = sums.median() if len(output) >= SEVERAL else sums.new_tensor((1.0, 100.0))
    apart = (sums[:, None] - total.view(1, -1)).abs() / total.view(1, -1)
    allowed = ROUNDED + min(step * output.shape[1] / 2 / float(sums.median()), MOST_APART)
    return bool((apart <= allowed).all(dim=0).any())


def _step(output: Tensor) -> float:
    """The smallest difference of two values: the quantum, if there is one."""
    gaps = output.flatten().sort().values.diff()
    gaps = gaps[gaps > 0]
    return float(gaps.min()) if len(gaps) else 0.0


@devices.exact_products()
def evaluate(
    model: nn.Module,
    images: Given,
    *,
    attacks: str | Sequence[Attack | str] = STRONG,
    threat: Threat,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    float_model: nn.Module | None = None,
    state: Path | None = None,
) -> Outcomes:
    """Clean accuracy and accuracy under each attack on n images; the network ends in eval mode.

    images: `Images`, a pair (x, y), or a DataLoader of such pairs, as `data.as_images` takes them. attacks: or their
    names; by default the cascade `strong`. n: how many, a stratified choice that hangs on the seed (`data.choose`);
    None takes all. float_model: what transfer attacks take gradients from. state: a file that keeps verdicts batch by
    batch; with the same settings and networks a stopped evaluation goes on from there.
    An image that is wrong when clean is wrong under every bounded attack, and no attack spends time on it.
    Every attack has a random stream of its own. `strong` says beforehand what it may take, goes on after the part where
    it stopped, and leaves in `Outcomes.parts` what each took.
    Raises RecipeError for an empty list of attacks or a repeated one, DataError for no images, more than there are, or
    labels that the network has no class for; ModelError for an output that is no logits.

    >>> import torch, qrobust
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    >>> x, y, threat = torch.rand(32, 1, 8, 8), torch.arange(32) % 2, qrobust.Threat("linf", 8 / 255)
    >>> outcomes = qrobust.evaluate(net, (x, y), attacks=["pgd-20", "apgd-ce"], threat=threat)
    >>> len(outcomes.worst_case()), sorted(outcomes.correct)
    (32, ['apgd-ce', 'clean', 'pgd-20'])
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
    scene = Scene(model, threat, float_model, seed, batch_size=batch_size)
    model.eval()
    first = images.take(slice(0, batch_size))
    classes = check_logits(model, to_unit(first.x, devices.device_of(model), channels_last=True))
    _check_classes(images, classes, attacks)
    outcomes.labels, outcomes.classes = images.y.cpu().numpy(), classes
    journal = Journal.of(scene, images, outcomes, batch_size, distributed.own(state) if state else None)
    passes = 1 + sum(len(attack.parts) for attack in attacks)
    with bar("evaluate", passes * len(images), "images") as moving:
        for attack in (None, *attacks):
            name = CLEAN if attack is None else attack.name
            started = time.perf_counter()
            before = outcomes.correct.get(CLEAN) if attack is not None and attack.bounded else None
            outcomes.correct[name] = _under(scene, images, attack, batch_size, journal, before, moving)
            outcomes.seconds[name] = time.perf_counter() - started
            if parts := remembered(journal, attack):
                outcomes.parts[name] = parts
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
        if attack is not None and is_strong(attack) and (verdicts[todo] == UNKNOWN).any():
            announce(attack, scene, images.take(torch.from_numpy(todo[:batch_size])), len(todo))
        size = batch_size * (TOGETHER if is_strong(attack) else 1)
        for start in range(distributed.rank() * size, len(todo), distributed.world() * size):
            which = todo[start : start + size]
            if (verdicts[which] == UNKNOWN).any():
                generator = devices.generator(scene.seed, name, part, start)
                batch = images.take(torch.from_numpy(which))
                with remembering(scene, attack, journal, start, moving) as place:
                    verdicts[which] = _one_batch(place, batch, attack, part, generator)
                journal.save()
            moving.advance(min(len(which) * distributed.world(), len(todo) - start))
        verdicts[:] = distributed.greatest(torch.from_numpy(verdicts).to(devices.device())).cpu().numpy()
        right[todo] = verdicts[todo] == RIGHT
    return right


def _one_batch(
    scene: Scene, batch: Images, attack: Attack | None, part: str, generator: torch.Generator
) -> npt.NDArray[np.bool_]:
    x = to_unit(batch.x, devices.device_of(scene.model), channels_last=True)
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
