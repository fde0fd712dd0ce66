"""One table: every figure's name, where it lives, what it needs and which settings decide it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Row:
    """home: module of the experiment and of its drawing. needs: of `needs.NEEDS`. uses: fields of `cases.Settings`
    beside n and seed. reads: files of a network's folder that decide the result. once: of the first case alone, as
    all have the same. paper: where it is published.
    """

    home: str
    paper: str
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("*.safetensors",)
    once: bool = False


SP, FD = '"A Spectral Perspective"', '"A Fourier Domain-based Study"'
ROWS = {
    "low-pass": Row("accuracy", f"{SP}, table I, fig. 2; {FD}, table 1", ("square",), ("attacks", "bandwidths")),
    "aggressiveness": Row("accuracy", f"{SP}, fig. 6", ("square",), ("attacks", "bandwidths")),
    "filtered": Row("images", f"{SP}, fig. 1, 3, 11, 12", ("square",), ("bandwidths",), (), once=True),
    "perturbations": Row("images", f"{SP}, fig. 5, 13, 14; {FD}, fig. 2", (), ("attacks",)),
    "mean-spectrum": Row("spectra", f"{SP}, fig. 4", (), ("attacks",)),
    "heat-map": Row("spectra", f"{SP}, fig. 7", (), ("norm",)),
    "kernels": Row("weights", f"{FD}, fig. 3"),
    "kernel-spectra": Row("weights", f"{FD}, fig. 4"),
    "inner-kernels": Row("weights", f"{FD}, fig. 8", ("two convolutions",)),
    "masks": Row("weights", f"{FD}, fig. 8", ("masks",)),
    "frequency-ratio": Row("layers", f"{FD}, fig. 5", reads=("*.safetensors", "metrics.jsonl")),
    "similarity": Row("layers", f"{FD}, fig. 6, 7", ("four images",), ("attacks",)),
    "similarity-to-float": Row("layers", f"{FD}, fig. 7", ("four images", "quantised"), ("attacks",)),
    "similarity-to-artifact": Row(
        "layers", f"{FD}, fig. 7", ("four images", "artifact"), ("attacks",), ("*.safetensors", "artifact/model.onnx")
    ),
    "ablation": Row("ablation", f"{SP}, fig. 9, 10", ("several evaluations",), (), ("eval.json",)),
}
NAMES = tuple(ROWS)


def chosen(text: str) -> tuple[str, ...]:
    """Names with commas, each once; "" for none. Raises RecipeError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        row_of(name)
    return names


def row_of(name: str) -> Row:
    """The row of a name. Raises RecipeError for an unknown one."""
    if name not in ROWS:
        raise RecipeError(f"expected a figure, got {name!r}{did_you_mean(name, ROWS)}")
    return ROWS[name]


def function(kind: str, name: str) -> Callable[..., Any]:
    """The experiment ("experiments") or the drawing ("figures") of a name; its module is loaded here."""
    home = import_module(f".{kind}.{row_of(name).home}", __package__)
    found: Callable[..., Any] = getattr(home, name.replace("-", "_"))
    return found
