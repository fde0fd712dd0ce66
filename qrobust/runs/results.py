"""The figures of a finished run, by width, before and after export."""

from __future__ import annotations

from typing import Any

from ..deployed.model import SUITE
from ..errors import RunError, one_line
from ..recipe import Recipe
from ..runtime import wilson
from ..storage import read_json
from .folder import NetworkFolder, RunFolder, judged


def results(recipe: Recipe, files: RunFolder) -> dict[str, Any]:
    """The run's figures by width, JSON-ready; accuracies are shares, latencies milliseconds.

    before: of the torch network on n test images. after: of the artifact on its runtime, suite replayed, and
    under the gradient-free attack there. activation_bits: None where activations have the network's width. Raises
    RunError for an attack made by hand, or a record of an older version, that is not whole.
    """
    timings = read_json(files.bench)
    try:
        widths = [_width(files.network(bits), timings) for bits in recipe.bits]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunError(f"expected whole results in {files.path}, got some that lack or break {one_line(error)}; "
                       "remove attack.json or train.json, and qrobust run makes them anew") from error  # fmt: skip
    return {
        "recipe": recipe.name,
        "threat": {"norm": recipe.threat.norm, "eps": recipe.threat.eps},
        "activation_bits": recipe.quant and recipe.quant.activation_bits,
        "shortcuts": recipe.quant and recipe.quant.shortcuts,
        "passed": all(width["verdict"] == "held" for width in widths),
        "widths": widths,
        "versions": timings["versions"],
        "hardware": timings["hardware"],
    }


def _width(files: NetworkFolder, timings: dict[str, Any]) -> dict[str, Any]:
    before, checked, trained = (read_json(path) for path in (files.evaluation, files.check, files.training))
    bits, rows = files.bits, [row for row in timings["results"] if row["bits"] == files.bits]
    return {
        "bits": bits,
        "size_bytes": rows[0]["size_bytes"],
        "train_seconds": trained["seconds"],
        "before": {key: before[key] for key in ("n", "clean", "attacks", "worst_case")},
        "after": {key: checked[key] for key in ("n", "accuracy", "ci95", "counts", "worst_case")},
        "label_flips": checked["label_flips"],
        "gap": _gap(files),
        "latency": {str(row["batch"]): {"p50_ms": row["p50_ms"], "speedup": row["speedup"]} for row in rows},
        "verdict": "held" if checked["passed"] else "broken",
        "broken": [verdict for verdict in checked["verdicts"] if not verdict["passed"]],
    }


def _gap(files: NetworkFolder) -> dict[str, Any] | None:
    """Worst cases of the same images in torch, replayed on the runtime and attacked there, JSON-ready.

    by: the attack on the file that broke most. in_torch: under the attacks that the file was under, too; None for an
    attack made by hand, on the file alone. None where the file was not attacked on images of the suite.
    """
    if not files.attack.exists():
        return None
    attacked = read_json(files.attack)
    sha256 = read_json(files.artifact / "manifest.json")["files"]["model.onnx"]["sha256"]
    if judged(attacked) != sha256 or attacked.get("data") != SUITE:
        return None
    n, replayed = attacked["n"], attacked["gap"]["replayed"]["worst_case"]
    return {
        "n": n,
        "in_torch": attacked.get("in_torch") and attacked["in_torch"]["worst_case"],
        "replayed": {"accuracy": replayed, "ci95": list(wilson(round(replayed * n), n))},
        "attacked": attacked["worst_case"],
        "by": min(attacked["attacks"], key=lambda name: float(attacked["attacks"][name]["accuracy"])),
    }
