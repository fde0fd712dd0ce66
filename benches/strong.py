"""The cascade `strong` beside AutoAttack: who breaks what, in how much time and how many passes.

    python benches/strong.py RUN/qm-N ... [--masked] [--n 1000] [--json benches/results/strong.json]

RUN/qm-N is a network of a run, as of benches/strong.toml, on n images and under the threat of its recipe. Both attack
the same images that are right when clean, in the same batches, threads, type and folding. --masked: the same float
networks with every ReLU's output rounded by a straight-through estimator that the toolkit does not know of. A unit
(network, attack, seed, batch) that the JSON holds is not done again: a stopped bench goes on. Seconds are of the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from torch import Tensor, nn

from qrobust import devices
from qrobust.attacks import Scene, StrongConfig, named, strong
from qrobust.data import choose, to_unit
from qrobust.evaluation import predict
from qrobust.models.inference import frozen
from qrobust.runs.run import Run
from qrobust.storage import read_json, write_json
from qrobust.threat import Threat

BATCH = 250
STEPS = 4  # of a rounded ReLU, a unit
AUTO, STRONG, QUICK = "autoattack", "strong", "strong:quick"
GOALS = {32: (0.10, "at most 2 of 1000 more"), 4: (0.25, "none more"), 2: (0.25, "5 points fewer")}
ABOUT = ("bits", "model", "eps", "n")
Unit = dict[str, Any]


class Counted(nn.Module):
    """A network that counts the images that go through it, forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.gradients = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.gradients += len(x) if x.requires_grad and torch.is_grad_enabled() else 0
        return self.model(x)


def rounded(model: nn.Module) -> nn.Module:
    """With every ReLU's output in steps, of which its gradient knows nothing."""

    def steps(_module: nn.Module, _inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return x + ((x * STEPS).round() / STEPS - x).detach()

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(steps)
    return model


def auto(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Unit:
    """AutoAttack's standard version, by its package's parts."""
    counted = Counted(model)
    x_adv = named(AUTO, threat).perturb(Scene(counted, threat, seed=seed), x, y, devices.generator(seed))
    right = predict(model, threat.project(x_adv, x)) == y
    return {
        "passes": [counted.forwards, counted.gradients],
        "right_clean": len(y),
        "right": record.packed(right.cpu().numpy()),
    }


def cascade(config: StrongConfig) -> Callable[..., Unit]:
    """The cascade: parts, with passes and images that each broke, and which part broke an image."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Unit:
        found = strong(model, x, y, threat=threat, config=config, generator=devices.generator(seed))
        parts = [[p.part, p.tried, p.broken, p.forward_passes, p.gradient_passes] for p in found.parts]
        return {
            "passes": [sum(p[3] for p in parts), sum(p[4] for p in parts)],
            "right_clean": len(y),
            "right": record.packed((~found.broken).cpu().numpy()),
            "parts": parts,
            "found_by": " ".join(map(str, found.found_by.tolist())),
        }

    return run


ATTACKS = {AUTO: auto, STRONG: cascade(StrongConfig()), QUICK: cascade(StrongConfig(quick=True))}


def batches(run: Run, model: nn.Module, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The images that are right when clean, in batches."""
    images, _ = choose(run.dataset.test, min(n, len(run.dataset.test)), 0)
    x, y = to_unit(images.x, devices.device(), channels_last=True), images.y.to(devices.device())
    right = torch.cat([predict(model, part) for part in x.split(BATCH)]) == y
    yield from zip(x[right].split(BATCH), y[right].split(BATCH), strict=True)


def measure(place: Path, options: argparse.Namespace, units: dict[str, Unit], save: Callable[[], None]) -> None:
    """All units of a network that are not there yet."""
    run, bits = Run.open(place.parent), int(place.name.removeprefix("qm-"))
    model = run.network(bits).eval()
    name = f"{run.recipe.name.rpartition('/')[2]} QM-{bits}{', masked' if options.masked else ''}, n {options.n}"
    about = dict(zip(ABOUT, (bits, Path(run.recipe.model.name).name, run.threat.eps, options.n), strict=True))
    if options.masked:
        rounded(model)
    with frozen(model):  # before either attack: both then see the same folded network
        for number, (x, y) in enumerate(batches(run, model, options.n)):
            for attack, seed in [(AUTO, 0), (QUICK, 0), *((STRONG, seed) for seed in range(options.seeds))]:
                key = f"{name}/{attack}/seed {seed}/batch {number}"
                if key in units:
                    continue
                started = time.process_time()
                unit = ATTACKS[attack](model, x, y, run.threat, seed)
                units[key] = {"seconds": time.process_time() - started, **about, **unit}
                print(f"{key}: {_mask(unit).sum()} of {len(y)} right, {units[key]['seconds']:.1f} s", flush=True)
                save()


def compared(units: dict[str, Unit]) -> list[dict[str, Any]]:
    """Of each network and seed: images right under AutoAttack, the cascade and both, ratios, and the curve."""
    names = dict.fromkeys(key.rsplit("/", 3)[0] for key in units)
    rows = []
    for name in names:
        base = _joined(units, name, AUTO, 0)
        seeds = {(attack, int(key.split("seed ")[1].split("/")[0]))
                 for key in units for attack in (STRONG, QUICK) if key.startswith(f"{name}/{attack}/")}  # fmt: skip
        for attack, seed in sorted(seeds):
            ours = _joined(units, name, attack, seed)
            if base is None or ours is None or len(base["right"]) != len(ours["right"]):
                continue
            left, theirs = ours["right"], base["right"]
            rows.append({
                "network": name, "attack": attack, "seed": seed, "right_clean": len(left),
                **{key: ours[key] for key in ABOUT},
                "right": int(left.sum()), AUTO: int(theirs.sum()), "both": int((left & theirs).sum()),
                "broken by AutoAttack alone": int((left & ~theirs).sum()),
                "time ratio": ours["seconds"] / base["seconds"],
                "passes ratio": sum(ours["passes"]) / sum(base["passes"]), "curve": _curve(ours),
                "found": _found(ours),
            })  # fmt: skip
    return rows


def _joined(units: dict[str, Unit], name: str, attack: str, seed: int) -> Unit | None:
    """The batches of an attack as one."""
    found = [unit for key, unit in units.items() if key.startswith(f"{name}/{attack}/seed {seed}/")]
    if not found:
        return None
    return {
        **{key: found[0][key] for key in ABOUT},
        "seconds": sum(unit["seconds"] for unit in found),
        "passes": [sum(both) for both in zip(*(unit["passes"] for unit in found), strict=True)],
        "right": np.concatenate([_mask(unit) for unit in found]),
        "parts": [unit.get("parts", []) for unit in found],
    }


def _mask(unit: Unit) -> np.ndarray[Any, Any]:
    packed = np.frombuffer(bytes.fromhex(unit["right"]), np.uint8)
    return np.unpackbits(packed, count=unit["right_clean"]).astype(bool)


def _curve(ours: Unit) -> list[tuple[str, int, int]]:
    """After each part: its name, all passes up to then, images that are right."""
    longest = max(ours["parts"], key=len)
    rows = [[unit[k] for unit in ours["parts"] if k < len(unit)] for k in range(len(longest))]
    passes = accumulate(sum(row[3] + row[4] for row in part) for part in rows)
    broken = accumulate(sum(row[2] for row in part) for part in rows)
    return [
        (one[0], taken, len(ours["right"]) - lost) for one, taken, lost in zip(longest, passes, broken, strict=True)
    ]


def _found(ours: Unit) -> dict[str, int]:
    """How many images each part broke that those before had left."""
    broken: Counter[str] = Counter()
    for name, _tried, lost, *_passes in chain.from_iterable(ours["parts"]):
        broken[name] += lost
    return dict(broken.most_common())


def main() -> None:
    """Measure what is missing, write, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=Path)
    parser.add_argument("--masked", action="store_true")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=record.ROOT / "benches" / "results" / "strong.json")
    options = parser.parse_args()
    origin, units = record.origin(), read_json(options.json)["units"] if options.json.exists() else {}

    def save() -> None:
        write_json(options.json, origin | {"batch": BATCH, "compared": compared(units), "units": units})

    for place in options.networks:
        measure(place, options, units, save)
    for row in compared(units):
        ratio, goal = GOALS.get(row["bits"], GOALS[4])
        print(
            f"{row['network']} {row['attack']} seed {row['seed']}: {row['right']} of {row['right_clean']} right, "
            f"AutoAttack {row[AUTO]}; time {row['time ratio']:.3f}, passes {row['passes ratio']:.3f} "
            f"(goal {ratio}, {goal})"
        )


if __name__ == "__main__":
    main()
