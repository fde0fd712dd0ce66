"""Every figure by name, drawn from data alone: neither torch nor a run is needed, so that saved JSON is drawn again."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bench.plot import SUFFIXES
from ..errors import RecipeError, RunError, did_you_mean, shown
from ..progress import note
from ..storage import read_json, write_bytes
from . import curves, maps
from .style import STYLE, Data

FIGURES: dict[str, Callable[[Data], Any]] = {
    "low-pass": curves.low_pass,
    "aggressiveness": curves.aggressiveness,
    "filtered": maps.filtered,
    "perturbations": maps.perturbations,
    "mean-spectrum": maps.mean_spectrum,
    "heat-map": maps.heat_map,
    "kernels": maps.kernels,
    "kernel-spectra": maps.kernel_spectra,
    "inner-kernels": maps.inner_kernels,
    "masks": curves.masks,
    "frequency-ratio": curves.frequency_ratio,
    "similarity": maps.similarity,
    "similarity-to-float": maps.similarity_to_float,
    "similarity-to-artifact": maps.similarity_to_artifact,
    "ablation": curves.ablation,
}
NAMES = tuple(FIGURES)


def chosen(text: str) -> tuple[str, ...]:
    """Names with commas, each once; "" for none. Raises RecipeError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        _drawing(name)
    return names


def draw(data: Data) -> Any:
    """The matplotlib figure of an experiment's data. Raises RunError for what is no such data."""
    if not isinstance(data, Mapping) or not {"figure", "cases", "settings"} <= data.keys():
        raise RunError("expected the data of a figure, got something else; give a JSON file of qrobust analyze")
    from matplotlib import rc_context

    drawing = _drawing(data["figure"])
    try:
        with rc_context(STYLE):
            return drawing(data)
    except (KeyError, IndexError, TypeError, ValueError) as error:  # a file that was cut or edited
        raise RunError(f"expected whole data of {data['figure']}, got some that lacks or breaks {error}; "
                       "measure it anew") from error  # fmt: skip


def save(data: Data, path: Path) -> list[Path]:
    """Draw data beside `path`, once as PNG and once as SVG; returns both. Raises RunError as `draw`."""
    from matplotlib import rc_context

    figure, paths = draw(data), [path.with_suffix(suffix) for suffix in SUFFIXES]
    for file in paths:
        buffer = io.BytesIO()
        with rc_context(STYLE):
            figure.savefig(buffer, format=file.suffix[1:], metadata={"Date": None} if file.suffix == ".svg" else None)
        write_bytes(file, buffer.getvalue())
    note(f"{paths[0]}: drawn")
    return paths


def redraw(files: Sequence[Path], out: Path | None) -> dict[str, Data] | None:
    """Saved data of figures by name, drawn once more beside it or in `out`; None if the first is no such data."""
    if any(path.suffix != ".json" for path in files):
        return None
    found = [read_json(path) for path in files]
    if not isinstance(found[0], dict) or "figure" not in found[0]:
        return None
    for path, data in zip(files, found, strict=True):
        save(data, out / path.name if out else path)
    return {data["figure"]: data for data in found}


def _drawing(name: Any) -> Callable[[Data], Any]:
    if not isinstance(name, str) or name not in FIGURES:
        raise RecipeError(f"expected a figure, got {shown(name)}{did_you_mean(str(name), FIGURES)}")
    return FIGURES[name]
