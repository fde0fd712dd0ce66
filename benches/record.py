"""What every committed result carries: the commit it was measured at, versions, hardware, outcomes image by image.

    python benches/record.py RUN [--json benches/results/NAME.json]

Writes the report of a finished run, to be committed: run it at the commit that the run was made at.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

from qrobust import devices
from qrobust.errors import QrobustError
from qrobust.evaluation import compare, read_outcomes
from qrobust.storage import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
# What a number may depend on; results and texts are written while others are measured.
DECIDES = ("qrobust", "benches", "recipes", "export", "constraints.txt", ":!benches/results", ":!*.md")
DIRTY = "-dirty"
ORIGIN = {"commit", "versions", "hardware"}
BY_SEED = {"seeds", "commits", "float"}  # of a study
OF_ALL_SEEDS = {"gains"}  # made anew of them


def origin() -> dict[str, Any]:
    """Commit, versions and hardware. To be asked before anything is measured: the code that runs is read by then."""
    return {"commit": commit(), "versions": devices.versions(), "hardware": devices.hardware()}


def commit(root: Path = ROOT) -> str | None:
    """The commit checked out, marked "-dirty" if code or settings differ from it; None outside a repository."""
    try:
        head, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--", *DECIDES)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + DIRTY if changes else head


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def packed(right: np.ndarray[Any, Any]) -> str:
    """Outcomes (n,) as hex: a bit an image, 1 where the label is right, first image in the highest bit."""
    return np.packbits(right).tobytes().hex()


def outcomes(evaluation: Path) -> dict[str, str]:
    """`packed` outcomes of an evaluation: of "clean" and of each attack. Raises RunError without its .npz."""
    return {name: packed(mask) for name, mask in read_outcomes(evaluation)[1].items()}


def paired(first: Path, second: Path) -> dict[str, Any]:
    """By set of images what `compare` says of two evaluations, with how many images were gained and lost."""
    sets = compare(first, second)["sets"]
    return {name: row | {"gained": len(row["gained"]), "lost": len(row["lost"])} for name, row in sets.items()}


def with_seeds(result: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """A study's result beside the trainings of other seeds, or other rows of a seed, that `path` holds already.

    Trainings take hours: so each may be made at its own commit, on its own machine. Raises ValueError where `path`
    holds a study of other settings.
    """
    result = json.loads(json.dumps(result)) | {"commits": dict.fromkeys(result["seeds"], result["commit"])}
    if path is None or not path.exists():
        return result
    earlier = read_json(path)
    earlier.setdefault("commits", dict.fromkeys(earlier["seeds"], earlier.get("commit")))
    keys = (earlier.keys() | result.keys()) - {*ORIGIN, *BY_SEED, *OF_ALL_SEEDS}
    if differ := sorted(key for key in keys if earlier.get(key) != result.get(key)):
        raise ValueError(f"expected a study of the same settings in {path}, got other {', '.join(differ)}; "
                         "write to a new file")  # fmt: skip
    for key in BY_SEED & result.keys():
        before = earlier.get(key, {})
        result[key] = before | {seed: _joined(before.get(seed), found) for seed, found in result[key].items()}
    return result


def _joined(before: Any, found: Any) -> Any:
    return before | found if isinstance(before, dict) else found


def over_trainings(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """What a method gains, tested over trainings: paired t-test of accuracies, one pair a training.

    Images of one test set cannot say it: another training from the same start differs by more than they tell.
    Returns n, mean difference, its 95 % interval and the p-value; Raises ValueError for fewer than two trainings.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"expected two trainings or more in pairs, got {len(first)} and {len(second)}; train more")
    differences = np.subtract(second, first)
    if not differences.any():  # of which the test knows nothing
        return {"trainings": len(first), "difference": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0}
    test = ttest_rel(second, first)
    interval = [float(end) for end in test.confidence_interval(0.95)]
    mean = float(differences.mean())
    return {"trainings": len(first), "difference": mean, "ci95": interval, "p_value": float(test.pvalue)}


def run_result(folder: Path) -> dict[str, Any]:
    """The report of a run with its commit, and outcomes by width.

    before: in torch; after: on the runtime, as the check found; attacked: of the file under attack, where it was.
    """
    report = read_json(folder / "report.json")
    kept = {}
    for width in report["widths"]:
        place = folder / f"qm-{width['bits']}"
        kept[f"QM-{width['bits']}"] = {
            "before": outcomes(place / "eval.json"),
            "after": read_json(place / "check.json")["outcomes"],
        }
        if (place / "attack.json").exists():
            kept[f"QM-{width['bits']}"]["attacked"] = outcomes(place / "attack.json")
    return {"commit": commit(), **report, "outcomes": kept}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, help="default: benches/results/NAME.json of the recipe's name")
    options = parser.parse_args()
    try:
        result = run_result(options.run)
        path = options.json or ROOT / "benches" / "results" / f"{result['recipe']}.json"
        write_json(path, result)
    except QrobustError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: measured at {result['commit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
