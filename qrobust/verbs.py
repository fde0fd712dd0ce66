"""What stands between the command line and the rooms: verbs that need torch and more than one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .attacks import named
from .errors import RecipeError
from .run import Run
from .storage import write_json

# The columns of the papers' tables. CW-20 is the unbounded L2 attack there; SP's C&W is the margin loss in l-inf.
PROTOCOLS = {
    "fd": ("gn", "fgsm", "pgd-20", "bim-20", "tpgd-20", "cw-20"),
    "sp": ("pgd-20", "pgd-50", "cw-inf-30", "autoattack"),
}


def evaluate_run(
    folder: Path, attacks: str, n: int | None, seed: int | None, json: Path | None, thorough: bool
) -> dict[str, dict[str, Any]]:
    """Results by network of a run folder, or of one RUN/qm-N, with the flags of a doubting evaluation.

    thorough: all doubts, else the cheap ones.
    attacks: names with commas, a key of PROTOCOLS, or "" for the recipe's. json: for one network its result,
    for several a result each in PATH with the network's name before the suffix; masks beside them.
    """
    one = folder.name.startswith("qm-") and not (folder / "recipe.toml").exists()
    run = Run.open(folder.parent if one else folder)
    widths = [int(folder.name.removeprefix("qm-"))] if one else list(run.recipe.bits)
    if widths[0] not in run.recipe.bits:
        raise RecipeError(f"expected a width of {list(run.recipe.bits)}, got {folder.name}")
    names = PROTOCOLS.get(attacks) or tuple(filter(None, attacks.split(","))) or run.recipe.evaluate.attacks
    chosen = tuple(named(name.strip(), run.threat) for name in names)
    results = {}
    for bits in widths:
        path = json if json is None or one else json.with_name(f"{json.stem}.qm-{bits}{json.suffix}")
        results[f"qm-{bits}"] = run.attack(bits, chosen, n=n, seed=seed, path=path, thorough=thorough)
    if json is not None and not one:
        write_json(json, results)
    return results
