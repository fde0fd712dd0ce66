"""Bits by layer under a budget: how much margin under attack each layer loses alone, and the best of all allocations.

OUT/             a run of the network at 8 bits without training, and beside its stages
OUT/sensitivities.jsonl    a line for each layer and width, measured once; a stopped command goes on there
OUT/allocation.json        widths, their cost and loss, the Pareto front, what uniform widths would cost and lose
OUT/layers.toml            [quant.layers], for `run` and `ptq`: -o OUT/layers.toml
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from .. import data, devices
from ..data.images import fingerprint
from ..errors import RecipeError
from ..evaluation.sensitivity import Sensitivities, Sensitivity
from ..models import own
from ..progress import bar
from ..quant import allocation, cost
from ..quant.allocation import Budget, Choice
from ..recipe import Recipe
from ..storage import digest, read_lines, write_json, write_text
from .run import Run

FULL = 8  # bits that others are measured against
POINTS = 200  # of the Pareto front, as they are kept


@dataclass(frozen=True)
class Request:
    """budget: as `allocation.budget` spells it. widths: a layer may have, besides 8. n: training images, a stratified
    choice, that margins are measured on.
    """

    budget: str
    widths: Sequence[int] = (2, 3, 4, 6)
    n: int = 256

    def __post_init__(self) -> None:
        if not self.widths or not set(self.widths) <= set(range(2, FULL)):
            raise RecipeError(f"expected widths from 2 to {FULL - 1}, got {list(self.widths)}; 8 is always one")
        if self.n < 1:
            raise RecipeError(f"expected one image or more to measure margins on, got {self.n}; some hundred are usual")
        allocation.budget(self.budget, size_bytes=1)  # refuses another spelling before minutes of work


def allocate(recipe: Recipe, out: Path, asked: Request) -> dict[str, Any]:
    """What `allocation.json` holds; recipe: of a network at 8 bits without training, as `ptq` makes it.

    Raises ModelError for a budget that no allocation keeps.
    """
    run = Run(recipe, out)
    run.train()
    model = run.network(FULL)
    images, _ = data.choose(run.dataset.train, min(asked.n, len(run.dataset.train)), recipe.seed)
    x = data.to_unit(images.x, devices.device(), channels_last=True)
    costs = cost(model, x[:1])
    most = allocation.budget(asked.budget, size_bytes=sum(one.size_bytes for one in costs.layers.values()))
    layers = {name: layer for name, layer in costs.layers.items() if layer.weight_bits == FULL}
    cheapest = {name: [Choice(FULL, _cost(layer, min(asked.widths), most), 0.0)] for name, layer in layers.items()}
    allocation.allocate(cheapest, most.most)  # refuses a budget before minutes of work
    asks = Sensitivities(model, x, images.y.to(x.device), threat=run.threat, seed=recipe.seed)
    weights = run.files.network(FULL).weights(run.networks.deployed(FULL))
    asked_of = [own.digest_of(weights), fingerprint(images), run.threat.norm, run.threat.eps, asdict(asks.config)]
    of = digest(["gains count for nothing", *asked_of])
    found = _measured(asks, asked, out / "sensitivities.jsonl", of)
    choices = {
        name: [Choice(FULL, _cost(layer, FULL, most), 0.0), *(
            Choice(one.bits, _cost(layer, one.bits, most), one.margin)
            for one in found if one.layer == name
        )]
        for name, layer in layers.items()
    }  # fmt: skip
    best, front = allocation.allocate(choices, most.most), allocation.pareto(choices)
    narrow = cost(run.untrained(min(asked.widths)).to(x.device).eval(), x[:1]).layers
    edges = [name for name in layers if narrow[name].weight_bits == FULL]  # as `ptq --bits` leaves them
    result = {
        "budget": asdict(most),
        "images": len(asks.x),
        "bits": dict(best.bits),
        "cost": best.cost,
        "loss": best.loss,
        "edges": edges,
        "uniform": [_uniform(choices, bits, edges) for bits in (*sorted(asked.widths), FULL)],
        "front": [[one.cost, one.loss] for one in front[:: max(1, len(front) // POINTS)]],
        "sensitivities": [asdict(one) for one in found],
        "versions": devices.versions(),
        "hardware": devices.hardware(),
    }
    write_json(out / "allocation.json", result)
    write_text(out / "layers.toml", tomli_w.dumps({"quant": {"layers": dict(best.bits)}}))
    return result


def _measured(asks: Sensitivities, asked: Request, path: Path, of: str) -> list[Sensitivity]:
    """All of them, those from before first. of: network, images and attack; lines of others say nothing here."""
    kept = [line for line in read_lines(path) if line.get("of") == of]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))  # without what a kill cut off
    known = (Sensitivity(**{key: value for key, value in line.items() if key != "of"}) for line in kept)
    found = [one for one in known if one.bits in asked.widths]
    done = {(one.layer, one.bits) for one in found}
    with path.open("a", encoding="utf-8") as lines, bar("sensitivity", asks.count(asked.widths), "layers") as moving:
        moving.advance(len(done))
        for one in asks.measure(asked.widths, done):
            found.append(one)
            lines.write(json.dumps({"of": of, **asdict(one)}) + "\n")
            lines.flush()
            moving.advance(1)
    return found


def _cost(layer: Any, bits: int, budget: Budget) -> float:
    """Of a layer with weights of so many bits, in the budget's unit."""
    if budget.unit == "bytes":
        return float(-(-layer.weights * bits // 8))
    return float(layer.macs * bits * layer.activation_bits)


def _uniform(choices: dict[str, list[Choice]], bits: int, edges: Collection[str]) -> dict[str, float]:
    """All layers at one width, but for the first and last ones, which keep 8 bits as in `ptq --bits`."""
    alike = [
        next(one for one in options if one.bits == (FULL if name in edges else bits))
        for name, options in choices.items()
    ]
    return {"bits": bits, "cost": sum(one.cost for one in alike), "loss": sum(one.loss for one in alike)}
