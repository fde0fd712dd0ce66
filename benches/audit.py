"""What is claimed to be robust for few bits, rebuilt small, under the attacks of its claim and under stronger ones.

    python benches/audit.py STATE [--root FOLDER] [--at RUN] [--natural RUN] [--only NAME,...] [--json F]

STATE is a folder for networks and for audit.json, which holds a unit for each network and attack. A unit that is there
is not done again and an attack that was stopped goes on, so the same call goes on after a stop. --at and --natural:
finished runs of the two float networks, whose qm-32 is taken over instead of trained. Cheap and telling units come
first: attacks as papers print them and `strong` of the first networks with the checks that every evaluation has, then
all checks, then the other networks, at last AutoAttack. --json: where the result is copied to after each unit.
One thread; all of it takes some twenty hours of one core. docs/audit.md is made from benches/results/audit.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from audit_networks import Built, Mean, Workshop, misaligned, random_precision, threshold, trained
from torch import Tensor, nn

from qrobust import devices
from qrobust.attacks import Scene, named, strong
from qrobust.data import choose, to_unit
from qrobust.evaluation import SANITY_CHECKS, CheckedModel, Outcomes, check_sanity, evaluate, predict
from qrobust.evaluation.outcomes import CLEAN, accuracy, mcnemar
from qrobust.evaluation.sanity import CHEAP_CHECKS
from qrobust.storage import digest, read_json, write_json
from qrobust.threat import Threat

N, SEED, BATCH = 200, 0, 50
LAST, TRANSFER, STRONG, KNOWN, AUTO = "pgd-20", "transfer-20", "strong", "strong, precision known", "autoattack"
PRINTED, DEFAULT, ALL = "checks as printed", "default checks", "all checks"  # of the printed attack alone, and strong
CHECKS = {PRINTED: CHEAP_CHECKS, DEFAULT: CHEAP_CHECKS, ALL: SANITY_CHECKS}
Unit = dict[str, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Subject:
    """A network of the audit. claim: what it stands for. eps: of its attacks, in 1/255. printed: the attack that the
    claim's number is of.
    """

    claim: str
    make: Callable[[Workshop], Built]
    eps: float = 8
    printed: str = LAST


def _grid(weights: int, activations: int) -> Subject:
    control = activations == 8 and weights > 2
    return Subject("control" if control else "activation bits", trained("at", weights, activations))


FIRST = {
    "float": Subject("control", trained("at")),
    "W8A8": _grid(8, 8),
    "W4A8": _grid(4, 8),
    "W2A2": _grid(2, 2),
    "W4A2": _grid(4, 2),
    "threshold": Subject("threshold", threshold),
    "random precision": Subject("random precision", random_precision(training=False)),
    "natural W2A2": Subject("natural, transfer", trained("natural", 2, 2), 2, TRANSFER),
    "natural W4A4": Subject("natural, transfer", trained("natural", 4, 4), 2, TRANSFER),
    "misaligned W4A4": Subject("misalignment", misaligned(4), 2, TRANSFER),
}
THEN = {
    "random precision, trained": Subject("random precision", random_precision(training=True)),
    "natural float": Subject("natural, transfer", trained("natural"), 2),
    "natural W8A8": Subject("natural, transfer", trained("natural", 8, 8), 2, TRANSFER),
    **{f"W{w}A{a}": _grid(w, a) for w, a in ((4, 4), (2, 4), (2, 8), (8, 4), (8, 2))},
}
SUBJECTS = FIRST | THEN


def plan(only: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Network and attack of every unit, in the order of what they tell."""
    for subjects in (FIRST, THEN):
        for checks in (DEFAULT, ALL):
            for name in subjects:
                attacks = [*attacks_of(name), PRINTED, DEFAULT] if checks == DEFAULT else [ALL]
                yield from ((name, attack) for attack in attacks if not only or name in only)
    yield from ((name, AUTO) for name in SUBJECTS if not only or name in only)


def attacks_of(name: str) -> list[str]:
    """What a network is under before AutoAttack."""
    if SUBJECTS[name].claim == "random precision":
        return [LAST, STRONG, KNOWN]
    return [LAST, STRONG] if name.endswith("float") else [LAST, TRANSFER, STRONG]


class Audit:
    """The units that are done, by network and attack, in a file."""

    def __init__(self, workshop: Workshop, *, n: int = N, copies: Path | None = None) -> None:
        self.workshop, self.n, self.copies = workshop, n, copies
        self.path = workshop.folder / "audit.json"
        self.origin = record.origin()
        self.units: dict[str, dict[str, Unit]] = read_json(self.path)["units"] if self.path.exists() else {}
        self._built: tuple[str, Built] | None = None

    def built(self, name: str) -> Built:
        """A network; only the last is kept in memory."""
        if self._built is None or self._built[0] != name:
            self._built = (name, SUBJECTS[name].make(self.workshop))
        return self._built[1]

    def run(self, only: tuple[str, ...] = ()) -> None:
        """All units that are not done."""
        self.save()  # what follows from the units that are there, if some were taken out
        todo = [one for one in plan(only) if one[1] not in self.units.get(one[0], {})]
        for done, (name, attack) in enumerate(todo):
            print(f"[{len(todo) - done} units left] {name}: {attack}", flush=True)
            built, started = self.built(name), time.perf_counter()
            threat = Threat("linf", SUBJECTS[name].eps / 255)
            found = (
                self.checked(name, built, threat, attack) if attack in CHECKS else self.attacked(built, threat, attack)
            )
            seconds = round(time.perf_counter() - started, 1)
            self.units.setdefault(name, {}).update(found | {attack: found[attack] | {"seconds": seconds}})
            self.units[name][attack]["commit"] = self.origin["commit"]
            self.save()
            print(f"    {_told(found[attack])}, {seconds:.0f} s", flush=True)

    def save(self) -> None:
        """Units and what follows from them."""
        limits = {one.name: one.limit for one in SANITY_CHECKS}
        about = {"n": self.n, "seed": SEED, "limits": limits, "rows": rows(self.units)}
        for path in (self.path, self.copies):
            if path is not None:
                write_json(path, self.origin | about | {"units": self.units})

    def attacked(self, built: Built, threat: Threat, attack: str) -> dict[str, Unit]:
        """The unit of an attack, and that of clean images."""
        if built.precisions:
            return self._drawn(built, threat, attack)
        state = self.workshop.folder / "evaluations" / f"{digest([str(built.file), attack, threat.eps])[:16]}.npz"
        state.parent.mkdir(exist_ok=True)
        outcomes = evaluate(
            built.model, built.images, attacks=(attack,), threat=threat, n=self.n, seed=SEED, batch_size=BATCH,
            float_model=built.float_model, state=state,
        )  # fmt: skip
        parts = {name: [[p.part, p.tried, p.broken, p.forward_passes, p.gradient_passes] for p in of]
                 for name, of in outcomes.parts.items()}  # fmt: skip
        return {name: unit(mask) | ({"parts": parts[name]} if name in parts else {})
                for name, mask in outcomes.correct.items()}  # fmt: skip

    def _drawn(self, built: Built, threat: Threat, attack: str) -> dict[str, Unit]:
        """A network of random precision: right is what the precision gets right that is drawn for an image. expected:
        the mean over all precisions, none drawn.
        """
        images, _ = choose(built.images, self.n, SEED)
        x, y = to_unit(images.x, devices.device(), channels_last=True), images.y
        nets = built.precisions
        drawn = torch.randint(len(nets), (len(y),), generator=devices.generator(SEED, "precision"))
        generator = devices.generator(SEED, "audit", attack)
        clean = _right(nets, x, y)
        if attack == KNOWN:  # which is drawn; so every image is attacked under one
            x_adv = x.clone()
            for number, net in enumerate(nets):
                which = (drawn == number).nonzero()[:, 0]
                x_adv[which] = strong(net, x[which], y[which], threat=threat, generator=generator).x
        elif attack == LAST:  # through precisions that are drawn in every step
            x_adv = named(attack, threat).perturb(Scene(built.model, threat, seed=SEED), x, y, generator)
        else:  # through the expectation over all
            x_adv = named(attack, threat).perturb(Scene(Mean(nets).eval(), threat, seed=SEED), x, y, generator)
        held = clean & _right(nets, threat.project(x_adv, x), y)
        rows = torch.arange(len(y))
        return {
            name: unit(mask[drawn, rows].numpy()) | {"expected": float(mask.float().mean())}
            for name, mask in ((CLEAN, clean), (attack, held))
        }

    def checked(self, name: str, built: Built, threat: Threat, which: str) -> dict[str, Unit]:
        """What sanity checks measure, given what an evaluation found: by the printed attack, or with `strong`."""
        attacks = [
            one for one in attacks_of(name) if one != KNOWN and (which != PRINTED or one == SUBJECTS[name].printed)
        ]
        masks = {one: mask_of(self.units[name][one]) for one in (CLEAN, *attacks)}
        _, indices = choose(built.images, self.n, SEED)
        outcomes = Outcomes(
            threat, SEED, tuple(named(one, threat) for one in attacks), "", masks,
            indices=None if indices is None else indices.tolist(),
        )  # fmt: skip
        checked = CheckedModel(
            built.model, built.images, threat, float_model=built.float_model, outcomes=outcomes, n=self.n, seed=SEED
        )
        found = check_sanity(checked, CHECKS[which])
        flags = [[flag.name, flag.measured, flag.limit] for flag in found.flags]
        return {which: {"measured": found.measured, "flags": flags}}


def _right(nets: tuple[nn.Module, ...], x: Tensor, y: Tensor) -> Tensor:
    """Whether each network is right, bool (networks, n)."""
    return torch.stack([torch.cat([predict(net, part) for part in x.split(BATCH)]) == y for net in nets])


def unit(mask: Mask) -> Unit:
    """Outcomes (n,) image by image, their share and its Wilson interval."""
    return {"n": len(mask), "right": record.packed(mask), **accuracy(mask)}


def mask_of(found: Unit) -> Mask:
    """Outcomes (n,) of a unit."""
    packed = np.frombuffer(bytes.fromhex(found["right"]), np.uint8)
    return np.unpackbits(packed, count=found["n"]).astype(bool)


def _told(found: Unit) -> str:
    return f"{found['accuracy']:.1%}" if "accuracy" in found else f"flags: {[flag[0] for flag in found['flags']]}"


def rows(units: dict[str, dict[str, Unit]]) -> list[Unit]:
    """Of each network: shares under each attack and in the worst case, the overestimate of the attack that its claim's
    number is of against `strong` with McNemar's p, and flags; None for what is not there.
    """
    return [_row(name, units.get(name, {})) for name in SUBJECTS]


def _row(name: str, found: dict[str, Unit]) -> Unit:
    subject = SUBJECTS[name]
    masks = {one: mask_of(unit) for one, unit in found.items() if "right" in unit}
    attacks = [mask for one, mask in masks.items() if one not in (CLEAN, KNOWN)]  # who knows the draw is another
    row: Unit = {"network": name, "claim": subject.claim, "eps": subject.eps, "printed": subject.printed}
    row |= {one: accuracy(masks[one]) if one in masks else None for one in (CLEAN, *attacks_of(name), AUTO)}
    row["worst case"] = accuracy(np.logical_and.reduce(attacks)) if STRONG in masks else None
    row["overestimate"] = row["p_value"] = None
    if {subject.printed, STRONG} <= masks.keys():
        printed, left = masks[subject.printed], masks[STRONG]
        row["overestimate"] = float(printed.mean() - left.mean())
        row["p_value"] = mcnemar(int((printed & ~left).sum()), int((left & ~printed).sum()))
    for checks in CHECKS:
        row[checks] = [flag[0] for flag in found[checks]["flags"]] if checks in found else None
    return row


def main() -> None:
    """Do what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("--root", help="folder of CIFAR-10")
    parser.add_argument("--at", type=Path)
    parser.add_argument("--natural", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ready = {name: path for name in ("at", "natural") if (path := getattr(options, name)) is not None}
    options.state.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(options.state, root=options.root, ready=ready)
    Audit(workshop, copies=options.json).run(tuple(filter(None, options.only.split(","))))


if __name__ == "__main__":
    main()
