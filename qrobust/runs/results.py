"""The figures of a finished run, by width, before and after export."""

from __future__ import annotations

from typing import Any

from ..errors import RunError, one_line
from ..headline import BROKEN, HELD, IN_TORCH, ON_FILE, headlines, strongest
from ..recipe import Recipe
from ..runtime import served, wilson
from ..storage import read_json
from .folder import NetworkFolder, RunFolder, judged

Record = dict[str, Any]


def results(recipe: Recipe, files: RunFolder) -> Record:
    """The run's figures by width, JSON-ready; accuracies are shares, latencies milliseconds.

    before, after, gap, flags: as of `measured`. headline: the one number and the verdict. activation_bits: None where
    activations have the network's width. Raises RunError for an attack made by hand, or a record of an older version,
    that is not whole.
    """
    timings = read_json(files.bench)
    try:
        widths = [_width(files.network(bits), timings) for bits in recipe.bits]
        for width, found in zip(widths, headlines(widths), strict=True):
            width["headline"] = found.to_dict()
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


def _width(files: NetworkFolder, timings: Record) -> Record:
    before, checked, trained = (read_json(path) for path in (files.evaluation, files.check, files.training))
    bits, rows = files.bits, [row for row in timings["results"] if row["bits"] == files.bits]
    found = measured(before, checked, _attacked(files))
    return {
        "bits": bits,
        "size_bytes": rows[0]["size_bytes"],
        "train_seconds": trained["seconds"],
        **found,
        "after": {**found["after"], "ci95": checked["ci95"], "counts": checked["counts"]},
        "label_flips": checked["label_flips"],
        "latency": {str(row["batch"]): {"p50_ms": row["p50_ms"], "speedup": row["speedup"]} for row in rows},
        "verdict": HELD if checked["passed"] else BROKEN,
        "broken": [verdict for verdict in checked["verdicts"] if not verdict["passed"]],
    }


def _attacked(files: NetworkFolder) -> Record | None:
    """What attacks on this file left, not on another."""
    if not files.attack.exists():
        return None
    attacked: Record = read_json(files.attack)
    manifest = read_json(files.artifact / "manifest.json")
    sha256 = manifest["files"][served(manifest)]["sha256"]
    return attacked if judged(attacked) == sha256 else None


def measured(evaluation: Record | None, checked: Record | None, attacked: Record | None) -> Record:
    """A network's numbers by place, and its flags, JSON-ready; None for a place without.

    before: of the torch network on n test images. after: of the artifact on its runtime, suite replayed, and under the
    gradient-free attack there. gap: the worst cases of the same images of the suite "in_torch", "replayed" and
    "attacked" on the file. flags: None where a result does not say.
    """
    before, after = ("n", "images", "clean", "attacks", "worst_case"), ("n", "accuracy", "worst_case")
    return {
        "before": evaluation and {key: evaluation[key] for key in before},
        "after": checked and {key: checked[key] for key in after},
        "gap": attacked and _gap(attacked),
        "flags": _flags({IN_TORCH: evaluation, ON_FILE: attacked}),
    }


def _flags(found: dict[str, Record | None]) -> list[Record] | None:
    made = {place: result for place, result in found.items() if result is not None}
    if not all("flags" in result for result in made.values()):
        return None
    return [{"place": place, **flag} for place, result in made.items() for flag in result["flags"]]


def _gap(attacked: Record) -> Record | None:
    """Worst cases of the same images in torch, replayed on the runtime and attacked there.

    by: the attack that broke most, at each place and on the file. in_torch: under the attacks that the file was under,
    too; None for an attack made by hand, on the file alone. None where it was not attacked on images of the suite.
    """
    replayed, torch = (attacked.get("gap") or {}).get("replayed"), attacked.get("in_torch")
    on_file = strongest(attacked["attacks"])
    if not replayed or not on_file:
        return None
    n, share = attacked["n"], replayed["worst_case"]
    others = ("n", "clean", "worst_case")
    stored = strongest({name: {"accuracy": left} for name, left in replayed.items() if name not in others})
    return {
        "n": n,
        "images": attacked["images"],
        "in_torch": torch and {**torch["worst_case"], **strongest(torch["attacks"])},
        "replayed": stored and {"accuracy": share, "ci95": list(wilson(round(share * n), n)), **stored},
        "attacked": {**attacked["worst_case"], **on_file},
        "by": on_file["by"],
    }
