"""Experiments one after the other, each case of each done once: what is saved is not measured again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import devices
from ..errors import QrobustError, RunError
from ..progress import note
from ..storage import digest, read_json, write_text
from .cases import Case, Result, Settings, open_cases, open_results
from .figures import save
from .needs import check, check_cases
from .table import NAMES, Row, function, row_of

FORMAT = 2  # of the data; another one is measured anew. 1: on the first n images
Data = dict[str, Any]


def analyze(paths: Sequence[Path], names: Sequence[str], settings: Settings, out: Path) -> dict[str, Data]:
    """Data by name, saved with their figures in `out`: NAME.json, NAME.png, NAME.svg.

    paths: run folders, RUN/qm-N, or results of `qrobust eval --json` (for "ablation" alone). names: of figures; none
    for all that these networks have what it needs for. Raises errors of `open_cases` and of `needs`, before any
    experiment begins.
    """
    files = [path for path in paths if path.suffix == ".json"]
    cases: Sequence[Any] = open_results(paths) if files else open_cases(paths, settings)
    if files and set(names) - {"ablation"}:
        raise RunError("expected run folders for these figures, got results of qrobust eval; these make an ablation")
    if not files:
        check_cases(cases)
    wanted = [name for name in names or (("ablation",) if files else NAMES) if _suits(name, cases, bool(names))]
    results = {}
    for name in wanted:
        path = out / f"{name}.json"
        results[name] = measured(name, cases, settings, path)
        save(results[name], path)
        note(f"{path.with_suffix('.png')}: drawn")
    return results


def measured(name: str, cases: Sequence[Case | Result], settings: Settings, path: Path) -> Data:
    """The data of a figure; cases whose result is in the file already are taken from there."""
    row = row_of(name)
    before, found = _before(path), list[Data]()
    cases = cases[:1] if row.once else cases
    for case in cases:
        key = _key(name, row, case, settings)
        done = key in before
        result = before[key] if done else function("experiments", name)(case)
        found.append({"label": case.label, "key": key, "result": result})
        data = _data(name, row, cases, settings, found)
        if not done or case is cases[-1]:  # what is measured stays so
            write_text(path, json.dumps(data, allow_nan=False) + "\n")
    return data


def _suits(name: str, cases: Sequence[Any], asked: bool) -> bool:
    try:
        check(cases, row_of(name).needs)
    except QrobustError as error:
        if asked:
            raise
        note(f"{name}: left out: {error}")
        return False
    return True


def _key(name: str, row: Row, case: Case | Result, settings: Settings) -> str:
    return digest([FORMAT, name, case.identity(row.reads), _used(row, settings)])


def _used(row: Row, settings: Settings) -> Data:
    used = {key: value for key, value in asdict(settings).items() if key in ("n", "seed", *row.uses)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in used.items()}


def _before(path: Path) -> dict[str, Data]:
    """Results by key; none of a file that is not there, or not one of ours."""
    if not path.exists():
        return {}
    data = read_json(path)
    cases = data.get("cases", []) if isinstance(data, dict) else []
    return {case["key"]: case["result"] for case in cases}


def _data(name: str, row: Row, cases: Sequence[Any], settings: Settings, found: list[Data]) -> Data:
    told: Data = {"figure": name, "paper": row.paper, "settings": _used(row, settings), "cases": found}
    if isinstance(cases[0], Case):
        first = cases[0]
        threats = [{"norm": case.run.threat.norm, "eps": case.run.threat.eps} for case in cases]
        told |= {"n": len(first.images), "seed": settings.seed, "data": first.run.recipe.data.name}
        told |= {"threat": threats[0] if threats.count(threats[0]) == len(threats) else None}
    return told | {"versions": devices.versions(), "hardware": devices.hardware()}
