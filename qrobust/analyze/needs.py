"""What an experiment asks of its cases, checked before any of them begins.

Each check is silent, or raises an error that says what is missing and how to come by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..attacks import named
from ..errors import DataError, ModelError, RecipeError, RunError
from ..runs.folder import FLOAT
from ..spectrum.similarity import LEAST
from .cases import Case, Result
from .experiments.weights import convolutions, masked_layers


def check_square(cases: Sequence[Case]) -> None:
    """Images as wide as high: else no k keeps everything."""
    for case in cases:
        height, width = case.images.shape[-2:]
        if height != width:
            raise DataError(f"expected square images, got {height} × {width}; crop them, or choose another figure")


def check_two_convolutions(cases: Sequence[Case]) -> None:
    """A convolution behind the first."""
    for case in cases:
        if len(convolutions(case.model)) < 2:
            raise ModelError(f"expected a second convolution in {case.label}, got none; choose another figure")


def check_masks(cases: Sequence[Case]) -> None:
    """A network behind FAT's masks."""
    if not any(masked_layers(case.model) for case in cases):
        raise RunError("expected a network behind FAT's masks, got none; quantise one with quant.fat = 'normalised'")


def check_quantised(cases: Sequence[Case]) -> None:
    """A network below 32 bits."""
    if all(case.bits == FLOAT for case in cases):
        raise RunError("expected a quantised network, got float ones alone; name RUN/qm-4, or a single run")


def check_artifact(cases: Sequence[Case]) -> None:
    """A network that was exported."""
    if not any((case.folder / "artifact" / "model.onnx").exists() for case in cases):
        raise RunError(f"expected an artifact in {cases[0].folder}, got none; make it by qrobust run RECIPE")


def check_four_images(cases: Sequence[Case]) -> None:
    """As many as an unbiased estimate takes."""
    for case in cases:
        if len(case.images) < LEAST:
            raise DataError(f"expected -n of at least {LEAST}, got {len(case.images)}; CKA compares images")


def check_several_evaluations(cases: Sequence[Case | Result]) -> None:
    """Two networks or more, all evaluated."""
    for case in cases:
        if isinstance(case, Case) and not (case.folder / "eval.json").exists():
            raise RunError(f"expected eval.json in {case.folder}, got none; make it by qrobust run RECIPE")
    if len(cases) < 2:
        raise RunError("expected evaluations of several networks, got one; name more runs")


NEEDS: dict[str, Callable[..., None]] = {
    "square": check_square,
    "two convolutions": check_two_convolutions,
    "masks": check_masks,
    "quantised": check_quantised,
    "artifact": check_artifact,
    "four images": check_four_images,
    "several evaluations": check_several_evaluations,
}


def check(cases: Sequence[Case], needs: Sequence[str]) -> None:
    """Raises the first error of these needs."""
    for need in needs:
        NEEDS[need](cases)


def check_cases(cases: Sequence[Case]) -> None:
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
