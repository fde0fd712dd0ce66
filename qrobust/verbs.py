"""What stands between the command line and the rooms: verbs that need torch and more than one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .analyze import save
from .analyze.cases import Settings
from .analyze.session import analyze
from .attacks.registry import listed
from .progress import note
from .storage import read_json

CPU = "CPUExecutionProvider"  # where `parity` compares, whatever the target
Results = dict[str, dict[str, Any]]
ResultsT = TypeVar("ResultsT")


def exported(folder: Path) -> str:
    """One line on an artifact that was written: its size, and how it compares with torch."""
    manifest = read_json(folder / "manifest.json")
    line = f"{folder}: {manifest['files']['model.onnx']['size_bytes']:,} bytes"
    found, provider = manifest.get("parity"), manifest["target"]["provider"]
    if found is None:
        return f"{line}, executed by no runtime here"
    first = f", the first in {found['first']}" if found["first"] else ""
    compared = f"{found['flips']:.2%} of {found['n']} labels flip, {found['share']:.2g} of activations differ{first}"
    return f"{line}, {compared}" + ("" if provider == CPU else f"; measured on {CPU}, which stands in for {provider}")


def analyze_folders(
    folders: Sequence[Path], figures: Sequence[str], attacks: str, settings: Mapping[str, Any], out: Path | None
) -> Results:
    """Data of figures by name; see `analyze.session`. attacks: as in `evaluate_folder`; settings: of `Settings`.

    out: None for RUN/analysis of one folder, analysis here of several.
    """
    chosen = Settings(attacks=listed(attacks), **settings)
    place = folders[0] if len(folders) == 1 and folders[0].is_dir() else Path()
    return analyze(folders, figures, chosen, out or place / "analysis")


def redrawn(files: Sequence[Path], out: Path | None) -> Results | None:
    """Saved data of figures, drawn once more beside it or in `out`; None if the first is no such data."""
    if any(path.suffix != ".json" for path in files):
        return None
    found = [read_json(path) for path in files]
    if not isinstance(found[0], dict) or "figure" not in found[0]:
        return None
    for path, data in zip(files, found, strict=True):
        note(f"{save(data, out / path.name if out else path)[0]}: drawn")
    return {data["figure"]: data for data in found}
