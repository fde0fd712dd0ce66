"""What stands between the command line and the rooms: verbs that need torch and more than one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .attacks import Attack, named
from .data import make_images
from .distributed import is_first, own
from .errors import RecipeError
from .evaluate import evaluate
from .run import Run
from .runtime import Artifact
from .storage import write_json
from .threat import Threat

# The columns of the papers' tables. CW-20 is the unbounded L2 attack there; SP's C&W is the margin loss in l-inf.
PROTOCOLS = {
    "fd": ("gn", "fgsm", "pgd-20", "bim-20", "tpgd-20", "cw-20"),
    "sp": ("pgd-20", "pgd-50", "cw-inf-30", "autoattack"),
}
WITHOUT_GRADIENTS = ("gn", "square")
Results = dict[str, dict[str, Any]]


def evaluate_folder(
    folder: Path,
    attacks: str,
    n: int | None,
    seed: int | None,
    json: Path | None,
    *,
    thorough: bool = False,
    averaged: bool = False,
) -> Results:
    """Results by network of a run folder, of one RUN/qm-N, or of an artifact, with the flags of their doubts.

    attacks: names with commas, a key of PROTOCOLS, or "" for the recipe's. n: None takes all test images.
    json: for one network its result; for several all of them, and one each in a file with the network's name
    before the suffix; masks beside them. thorough: all doubts, else the cheap ones. averaged: the weight
    averages of a run's networks instead of what its recipe deploys; those without one are left out.
    """
    if json is not None and json.suffix != ".json":  # else the masks of all networks would share one .npz
        raise RecipeError(f"expected a file that ends in .json for --json, got {json}; masks go to .npz beside it")
    if (folder / "manifest.json").exists():
        return _evaluate_artifact(folder, attacks, n, seed, json)
    one = folder.name.startswith("qm-") and not (folder / "recipe.toml").exists()
    run = Run.open(folder.parent if one else folder, averaged=averaged)
    widths = [_width(folder, run)] if one else list(run.recipe.bits)
    widths = [bits for bits in widths if run.has_average(bits)] if averaged else widths
    if not widths:
        raise RecipeError(f"expected a run with weight averages, got {folder}; add a table train.average and train")
    chosen = _named(attacks, run.threat, run.recipe.evaluate.attacks)
    results = {}
    for bits in widths:
        path = json if json is None or one else json.with_name(f"{json.stem}.qm-{bits}{json.suffix}")
        results[f"qm-{bits}"] = run.attack(bits, chosen, n=n, seed=seed, path=path, thorough=thorough)
    if json is not None and not one and is_first():
        write_json(json, results)
    return results


class SessionNetwork(nn.Module):
    """An artifact as a network without gradients: logits come from its own session."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__()
        self._artifact = artifact
        identity = bytes.fromhex(artifact.manifest["files"]["model.onnx"]["sha256"])
        self.register_buffer("identity", torch.tensor(list(identity)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0,1] → logits (n, classes)."""
        return torch.from_numpy(self._artifact.logits(x.contiguous().cpu().numpy())).to(x.device)


def _evaluate_artifact(folder: Path, attacks: str, n: int | None, seed: int | None, json: Path | None) -> Results:
    artifact = Artifact.load(folder)
    threat = Threat("linf", artifact.eps)
    chosen = _named(attacks, threat, ("gn", "square-500"))
    for attack in chosen:
        if attack.family not in WITHOUT_GRADIENTS:
            raise RecipeError(
                f"expected attacks without gradients on an artifact (gn, square-500), got {attack.name}; "
                "attack the network of its run: qrobust eval RUN"
            )
    pixels, labels = (torch.from_numpy(artifact.suite[name]) for name in ("x.clean", "y"))
    outcomes = evaluate(
        SessionNetwork(artifact),
        make_images(pixels, labels, classes=len(artifact.classes)),
        attacks=chosen,
        threat=threat,
        n=n,
        seed=seed or 0,
        state=json.with_suffix(".partial.npz") if json else None,
        label=f"evaluate {artifact.name}",
    )
    if json is not None:
        if is_first():
            outcomes.save(json, flags=[])
        own(json.with_suffix(".partial.npz")).unlink(missing_ok=True)
    return {artifact.name: outcomes.to_dict() | {"flags": []}}


def _named(attacks: str, threat: Threat, default: tuple[str, ...]) -> tuple[Attack, ...]:
    names = PROTOCOLS.get(attacks) or (attacks.split(",") if attacks else default)
    return tuple(named(name.strip(), threat) for name in names)


def _width(folder: Path, run: Run) -> int:
    text = folder.name.removeprefix("qm-")
    if not text.isdigit() or int(text) not in run.recipe.bits:
        raise RecipeError(f"expected a width of {list(run.recipe.bits)}, got {folder.name}; name one of the run's")
    return int(text)
