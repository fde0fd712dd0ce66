"""What a setting costs and gives: evaluations of networks whose recipes differ in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...storage import read_json
from ..cases import Case, Result

DECIDES = {"seed", "data", "model", "threat", "train", "quant"}  # parts of a recipe


def ablation(case: Case | Result) -> dict[str, Any]:
    """Accuracies of an evaluation, and by path all settings that decided the weights."""
    if isinstance(case, Case):
        evaluation = read_json(case.folder / "eval.json")
        settings = dict(_flat(case.run.recipe.model_dump(mode="json", include=DECIDES))) | {"bits": case.bits}
    else:
        evaluation, settings = case.evaluation, {}
    attacks = {name: _share(found) for name, found in evaluation["attacks"].items()}
    return {"settings": settings, "n": evaluation["n"], "accuracy": {"clean": _share(evaluation["clean"]), **attacks}}


def _share(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("accuracy", "ci95")}


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
