"""The table of experiments, each done once a case and saved; what one needs is checked before any begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .. import devices
from ..attacks import named
from ..errors import DataError, ModelError, QrobustError, RecipeError, RunError
from ..progress import note
from ..resources import unplaced
from ..runs.folder import FLOAT
from ..spectrum.similarity import LEAST
from ..storage import digest, read_json, write_text
from . import images, layers
from .cases import Case, Result, Settings, open_cases, open_results
from .figures import NAMES, save

FORMAT = 2  # of the data; another one is measured anew. 1: on the first n images
Data = dict[str, Any]


def check_square(cases: Sequence[Case]) -> None:
    """Images as wide as high: else no k keeps everything."""
    for case in cases:
        height, width = case.images.shape[-2:]
        if height != width:
            raise DataError(f"expected square images, got {height} × {width}; crop them, or choose another figure")


def check_two_convolutions(cases: Sequence[Case]) -> None:
    """A convolution behind the first."""
    for case in cases:
        if len(layers.convolutions(case.model)) < 2:
            raise ModelError(f"expected a second convolution in {case.label}, got none; choose another figure")


def check_masks(cases: Sequence[Case]) -> None:
    """A network behind FAT's masks."""
    if not any(layers.masked_layers(case.model) for case in cases):
        raise RunError("expected a network behind FAT's masks, got none; quantise one with quant.fat = 'normalised'")


def check_quantised(cases: Sequence[Case]) -> None:
    """A network below 32 bits."""
    if all(case.bits == FLOAT for case in cases):
        raise RunError("expected a quantised network, got float ones alone; name RUN/qm-4, or a single run")


def check_artifact(cases: Sequence[Case]) -> None:
    """A network that was exported."""
    if not any((case.files.artifact / "model.onnx").exists() for case in cases):
        raise RunError(f"expected an artifact in {cases[0].files.path}, got none; make it by qrobust run RECIPE")


def check_four_images(cases: Sequence[Case]) -> None:
    """As many as an unbiased estimate takes."""
    for case in cases:
        if len(case.images) < LEAST:
            raise DataError(f"expected -n of at least {LEAST}, got {len(case.images)}; CKA compares images")


def check_several_evaluations(cases: Sequence[Case | Result]) -> None:
    """Two networks or more, all evaluated."""
    for case in cases:
        if isinstance(case, Case) and not case.files.evaluation.exists():
            raise RunError(f"expected eval.json in {case.files.path}, got none; make it by qrobust run RECIPE")
    if len(cases) < 2:
        raise RunError("expected evaluations of several networks, got one; name more runs")


@dataclass(frozen=True)
class Experiment:
    """measure: a case → data. paper: where such a figure is published. needs: checks of all cases, each silent, or
    raising an error that says what is missing and how to come by it. uses: fields of `Settings` beside n and seed
    that decide the result. reads: files of a network's folder that decide it. once: of the first case alone, as all
    have the same.
    """

    measure: Callable[[Any], Data | None]
    paper: str
    needs: tuple[Callable[[Sequence[Any]], None], ...] = ()
    uses: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("*.safetensors",)
    once: bool = False


SP, FD = '"A Spectral Perspective"', '"A Fourier Domain-based Study"'
WITH_ARTIFACT, LOGGED = ("*.safetensors", "artifact/model.onnx"), ("*.safetensors", "metrics.jsonl")
EXPERIMENTS = {
    "low-pass": Experiment(
        images.low_pass, f"{SP}, table I, fig. 2; {FD}, table 1", (check_square,), ("attacks", "bandwidths")
    ),
    "aggressiveness": Experiment(images.aggressiveness, f"{SP}, fig. 6", (check_square,), ("attacks", "bandwidths")),
    "filtered": Experiment(
        images.filtered, f"{SP}, fig. 1, 3, 11, 12", (check_square,), ("bandwidths",), (), once=True
    ),
    "perturbations": Experiment(images.perturbations, f"{SP}, fig. 5, 13, 14; {FD}, fig. 2", uses=("attacks",)),
    "mean-spectrum": Experiment(images.mean_spectrum, f"{SP}, fig. 4", uses=("attacks",)),
    "heat-map": Experiment(images.heat_map, f"{SP}, fig. 7", uses=("norm",)),
    "kernels": Experiment(layers.kernels, f"{FD}, fig. 3"),
    "kernel-spectra": Experiment(layers.kernel_spectra, f"{FD}, fig. 4"),
    "inner-kernels": Experiment(layers.inner_kernels, f"{FD}, fig. 8", (check_two_convolutions,)),
    "masks": Experiment(layers.masks, f"{FD}, fig. 8", (check_masks,)),
    "frequency-ratio": Experiment(layers.frequency_ratio, f"{FD}, fig. 5", reads=LOGGED),
    "similarity": Experiment(layers.similarity, f"{FD}, fig. 6, 7", (check_four_images,), ("attacks",)),
    "similarity-to-float": Experiment(
        layers.similarity_to_float, f"{FD}, fig. 7", (check_four_images, check_quantised), ("attacks",)
    ),
    "similarity-to-artifact": Experiment(
        layers.similarity_to_artifact, f"{FD}, fig. 7", (check_four_images, check_artifact), ("attacks",), WITH_ARTIFACT
    ),
    "ablation": Experiment(
        images.ablation, f"{SP}, fig. 9, 10", (check_several_evaluations,), reads=("eval.json",)
    ),
}  # fmt: skip


def analyze(
    paths: Sequence[Path], names: Sequence[str], settings: Settings, out: Path | None = None, model: str = ""
) -> dict[str, Data]:
    """Data by name, saved with their figures in `out`: NAME.json, NAME.png, NAME.svg.

    paths: run folders, RUN/qm-N, or results of `qrobust eval --json` (for "ablation" alone). names: of figures; none
    for all that these networks have what it needs for. out: None for RUN/analysis of one folder, analysis here of
    several. model: as of `Run`. Raises errors of `open_cases` and of what experiments need, before any begins.
    """
    files = [path for path in paths if path.suffix == ".json"]
    cases: Sequence[Any] = open_results(paths) if files else open_cases(paths, settings, model)
    if files and set(names) - {"ablation"}:
        raise RunError("expected run folders for these figures, got results of qrobust eval; these make an ablation")
    if not files:
        _check_cases(cases)
    wanted = [name for name in names or (("ablation",) if files else NAMES) if _suits(name, cases, bool(names))]
    folder = out or (paths[0] if len(paths) == 1 and not files else Path()) / "analysis"
    results = {}
    for name in wanted:
        path = folder / f"{name}.json"
        results[name] = measured(name, cases, settings, path)
        save(results[name], path)
    return results


def measured(name: str, cases: Sequence[Case | Result], settings: Settings, path: Path) -> Data:
    """The data of a figure; cases whose result is in the file already are taken from there."""
    experiment = EXPERIMENTS[name]
    before, found = _before(path), list[Data]()
    cases = cases[:1] if experiment.once else cases
    for case in cases:
        key = digest([FORMAT, name, case.identity(experiment.reads), _used(experiment, settings)])
        done = key in before
        result = before[key] if done else experiment.measure(case)
        found.append({"label": case.label, "key": key, "result": result})
        data = _data(name, cases, settings, found)
        if not done or case is cases[-1]:  # what is measured stays so
            write_text(path, json.dumps(data, allow_nan=False) + "\n")
    return data


def _check_cases(cases: Sequence[Case]) -> None:
    """What no figure can do without: images alike, as many and as wide as the settings say; attacks; convolutions."""
    for case in cases:
        for name in case.settings.attacks:
            named(name, case.run.threat)
        if (norm := case.settings.norm) is not None and not norm > 0:
            raise RecipeError(f"expected --norm above 0, got {norm:g}; a wave of no height changes nothing")
        shapes = [tuple(one.images.shape[1:]) for one in (cases[0], case)]
        if shapes[0] != shapes[1]:
            raise DataError(f"expected images of one shape, got {shapes[0]} and {shapes[1]}; compare runs on the same")
        case.bandwidths  # noqa: B018, checked there
        if not any(isinstance(module, nn.Conv2d) for module in case.model.modules()):
            raise ModelError(f"expected a network with convolutions in {case.label}, got one without")


def _suits(name: str, cases: Sequence[Any], asked: bool) -> bool:
    try:
        for check in EXPERIMENTS[name].needs:
            check(cases)
    except QrobustError as error:
        if asked:
            raise
        note(f"{name}: left out: {error}")
        return False
    return True


def _used(experiment: Experiment, settings: Settings) -> Data:
    used = {key: value for key, value in asdict(settings).items() if key in ("n", "seed", *experiment.uses)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in used.items()}


def _before(path: Path) -> dict[str, Data]:
    """Results by key; none of a file that is not there, or not one of ours."""
    if not path.exists():
        return {}
    data = read_json(path)
    cases = data.get("cases") if isinstance(data, dict) else None
    whole = [case for case in cases or () if isinstance(case, dict) and {"key", "result"} <= case.keys()]
    return {str(case["key"]): case["result"] for case in whole}


def _data(name: str, cases: Sequence[Any], settings: Settings, found: list[Data]) -> Data:
    experiment = EXPERIMENTS[name]
    data: Data = {"figure": name, "paper": experiment.paper, "settings": _used(experiment, settings), "cases": found}
    if isinstance(cases[0], Case):
        first = cases[0]
        threats = [{"norm": case.run.threat.norm, "eps": case.run.threat.eps} for case in cases]
        data |= {"n": len(first.images), "seed": settings.seed, "data": unplaced(first.run.recipe.data.name)}
        data |= {"threat": threats[0] if threats.count(threats[0]) == len(threats) else None}
    return data | {"versions": devices.versions(), "hardware": devices.hardware()}
