"""A run's torch networks under attack: their accuracy, cost and sanity checks, by one way whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import data, devices, distributed, quant
from ..attacks import Attack
from ..attacks.registry import TRANSFER
from ..data import Images
from ..evaluation import CHEAP_CHECKS, SANITY_CHECKS, CheckedModel, Outcomes, check_sanity, evaluate
from ..threat import Threat
from .folder import FLOAT
from .networks import Networks

Record = dict[str, Any]
Save = Callable[[Outcomes, Record], None]
MOST_CHECKED = 200  # images; the first of those that were evaluated


@dataclass(frozen=True)
class Request:
    """What is asked of an evaluation.

    n: test images, None for all. seed: None for the recipe's. path: of the result (.json); beside it lies the state
    from which a stopped evaluation goes on. thorough: all sanity checks, else the cheap ones.
    """

    n: int | None = None
    seed: int | None = None
    path: Path | None = None
    thorough: bool = False

    @property
    def state(self) -> Path | None:
        """The file that a stopped evaluation goes on from."""
        return self.path.with_suffix(".partial.npz") if self.path else None


def evaluate_width(
    networks: Networks,
    bits: int,
    attacks: Sequence[Attack],
    threat: Threat,
    request: Request,
    save: Save | None = None,
) -> Record:
    """Attack a width and check the result; `save` is called with it by the first of several processes."""
    outcomes = _outcomes(networks, bits, networks.dataset.test, attacks, threat, request)
    more = _cost(networks, bits)
    if distributed.is_first():
        more |= _checked(networks, bits, outcomes, thorough=request.thorough)
        if save is not None:
            save(outcomes, more)
    if request.state is not None:
        distributed.own(request.state).unlink(missing_ok=True)
    distributed.wait()
    return outcomes.to_dict() | more


def evaluate_as_file(
    networks: Networks, bits: int, attacks: Sequence[Attack], threat: Threat, images: Images
) -> Record:
    """What is left of the torch network by the attacks that its file is under, on the same images."""
    settings = networks.recipe.attack
    request = Request(settings.n if settings else None)
    found = _outcomes(networks, bits, images, attacks, threat, request).to_dict()
    return {name: found[name] for name in ("n", "clean", "attacks", "worst_case")}


def _outcomes(
    networks: Networks, bits: int, images: Images, attacks: Sequence[Attack], threat: Threat, request: Request
) -> Outcomes:
    float_model = networks.float_network(bits)
    if float_model is None:  # the float network itself: nothing to transfer from
        attacks = [attack for attack in attacks if attack.family != TRANSFER] or attacks
    return evaluate(
        networks.network(bits),
        images,
        attacks=attacks,
        threat=threat,
        n=request.n,
        seed=networks.recipe.seed if request.seed is None else request.seed,
        batch_size=networks.recipe.evaluate.batch_size,
        float_model=float_model,
        state=request.state,
    )


def _cost(networks: Networks, bits: int) -> Record:
    model, one = networks.network(bits), networks.dataset.test.take(slice(0, 1)).x
    example = data.to_unit(one, devices.device_of(model), channels_last=True)
    return {"cost": quant.cost(model, example).to_dict()}


def _checked(networks: Networks, bits: int, outcomes: Outcomes, *, thorough: bool) -> Record:
    widths = networks.recipe.bits if thorough else ()
    checked = CheckedModel(
        networks.network(bits),
        networks.dataset.test,
        outcomes.threat,
        float_model=networks.float_network(bits),
        others=[networks.network(width) for width in widths if width not in (bits, FLOAT)],
        outcomes=outcomes,
        n=min(outcomes.n, MOST_CHECKED),
        seed=outcomes.seed,
    )
    found = check_sanity(checked, SANITY_CHECKS if thorough else CHEAP_CHECKS)
    return {"sanity_checks": found.measured, "flags": [flag.to_dict() for flag in found.flags]}
