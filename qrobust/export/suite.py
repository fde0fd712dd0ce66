"""The regression suite that travels with an artifact: 8-bit images, as a camera hands them over."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .. import machine
from ..attacks import Attack, Scene
from ..data import Images, to_unit
from ..errors import ExportError
from ..evaluate import predict
from ..threat import Threat

Arrays = dict[str, npt.NDArray[Any]]


@machine.exact_products()
def make_suite(
    model: nn.Module,
    images: Images,
    *,
    attacks: Sequence[Attack],
    threat: Threat,
    seed: int,
    twin: nn.Module | None = None,
    batch_size: int = 250,
) -> Arrays:
    """Clean images and adversarial ones crafted on `model`, in 8 bits, with what the model says of each.

    Returns arrays: "y" int64 (n,), and for "clean" and every attack "x.NAME" uint8 (n, c, h, w) and
    "label.NAME" int64 (n,); "logits.clean" float32 (n, classes). Rounding stays inside the threat, and labels
    are those of the rounded images. twin: the float network that transfer attacks craft on.
    Raises ExportError for an attack that the threat does not bound, or whose images are the clean ones.
    """
    check_suite_attacks(attacks)
    model.eval()
    scene = Scene(model, threat, twin, seed)
    parts: dict[str, list[Tensor]] = {}
    for index, batch in enumerate(images.batches(batch_size)):
        x = to_unit(batch.x, machine.device_of(model), channels_last=True)
        y = batch.y.to(x.device)
        for attack in (None, *attacks):
            name = "clean" if attack is None else attack.name
            generator = machine.generator(seed, "suite", name, index)
            x_adv = x if attack is None else attack.craft(scene, x, y, generator)
            pixels = to_pixels(x_adv, x, threat)
            parts.setdefault(f"x.{name}", []).append(pixels)
            parts.setdefault(f"label.{name}", []).append(predict(model, to_unit(pixels, x.device, True)))
        with torch.no_grad():
            parts.setdefault("logits.clean", []).append(model(x))
    arrays: Arrays = {name: torch.cat(values).cpu().contiguous().numpy() for name, values in parts.items()}
    for attack in attacks:
        _check_changed(arrays, attack.name, threat)
    return {"y": images.y.cpu().numpy(), **arrays}


def check_suite_attacks(attacks: Sequence[Attack]) -> None:
    """Raises ExportError for an attack whose images a check could not tell from images of any other."""
    for unbounded in (attack for attack in attacks if not attack.bounded):
        raise ExportError(
            f"expected attacks within the threat in export.suite_attacks, got {unbounded.name}; leave it out there"
        )


def _check_changed(arrays: Arrays, name: str, threat: Threat) -> None:
    if np.array_equal(arrays[f"x.{name}"], arrays["x.clean"]):
        raise ExportError(
            f"expected images of {name} that differ from the clean ones in 8 bits, got the same; raise threat.eps, "
            f"{threat.eps:g} in {threat.norm}, or leave {name} out of export.suite_attacks"
        )


def to_pixels(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """x_adv in [0,1] as uint8, rounded so that the change of the image stays within the threat, exactly.

    x: the clean images, on the 8-bit grid; x_adv: within the threat. In l-inf pixels are rounded to the nearest step;
    in l2 as many away from x as its length allows, those that were nearest to it first.
    """
    clean = (x * 255).round()
    change = x_adv * 255 - clean
    if threat.norm == "linf":
        reach = int(threat.eps * 255 + 1e-4)  # whole steps of a pixel inside the ball
        change = change.round().clamp(-reach, reach)
    else:
        change = _rounded_l2(change, threat.eps * 255)
    return (clean + change).clamp(0, 255).to(torch.uint8)


def _rounded_l2(change: Tensor, radius: float) -> Tensor:
    """Changes (n, c, h, w) in steps of a pixel as whole ones, about as long as they were and never above the radius.

    Cut towards zero, a change would lose half a step a pixel: a sixth of its length at eps 0.5 on 32 × 32 × 3 pixels.
    """
    flat = change.double().flatten(1)
    low = flat.abs().floor()
    room = flat.square().sum(1).add(0.5).clamp_max(radius**2 + 1e-6).floor() - low.square().sum(1)
    left, order = (flat.abs() - low).sort(dim=1, descending=True)
    cost = (2 * low + 1).gather(1, order).cumsum(1)  # in squared length
    up = ((cost <= room[:, None]) & (left > 1e-4)).double()  # below it lies the noise of float32
    return ((low + torch.zeros_like(low).scatter(1, order, up)) * flat.sign()).view_as(change).float()


def suite_bytes(arrays: Arrays) -> bytes:
    """The arrays as a compressed .npz without pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def suite_accuracy(arrays: Arrays) -> dict[str, float]:
    """Accuracy of the torch network on each set of the suite."""
    names = [name.removeprefix("label.") for name in arrays if name.startswith("label.")]
    return {name: float((arrays[f"label.{name}"] == arrays["y"]).mean()) for name in names}
