"""Options that verbs of the command line share, and what their help says."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Optional

import typer

from .errors import RecipeError

ATTACKS_HELP = (
    "Names with commas, as gn,fgsm,pgd-20,cw-inf-30,autoattack; or a protocol: fd (the columns of the "
    "Fourier-domain study), sp (of the spectral perspective). Default: the recipe's, and strong."
)
SANITY_HELP = "Every sanity check of docs/flags.md, not the cheap ones only."
FILE_HELP = "As in eval. Default: strong, the suite's, Square, and transfer where there is a source."
TRANSFER_HELP = "Where examples may transfer from, repeatable: an artifact, a run. Default: the float network beside."
DATA_HELP = (
    "Images: an .npz with x (uint8) and y, a folder, or a data set. Default: the suite's. Needed for a bare ONNX file."
)
EXPORT_DATA_HELP = "F.onnx: images: an .npz with x (uint8) and y, a folder of image files by class, or a data set."
TARGET_HELP = "Deployment target. Default: ort-cpu; of F.onnx: as-given, which asks nothing of its graph."
ARTIFACTS_HELP = "Folder for the artifacts, one a width; of F.onnx the artifact itself."
OUTPUT_HELP = "F.onnx: the value of its graph that gives logits, if it has several outputs."
MEAN_HELP = "F.onnx: what pixels in [0,1] are normalised by: one number, or one a channel, with commas."
INPUT_HELP = "float32-nchw: images in [0,1]; uint8-nhwc: bytes, as cameras give. Default: the recipe's."
BASELINE_HELP = "Compare with pinned outcomes: a file, or a name in export/baselines."
FIGURES_HELP = "Names with commas, as low-pass,heat-map. Default: all that these networks have what it takes for."
RUNS_HELP = (
    "Run folders: every width of a single one, QM-32 of each of several; RUN/qm-N for one width. Or results of eval "
    "--json, for an ablation. Or JSON files of this command, drawn again."
)
BANDWIDTHS_HELP = "Bandwidths of filters, with commas. Default: eighths of the side."
PERTURBATIONS_HELP = "As in eval; the first makes the perturbations that are looked at."
PROVIDER_HELP = "cpu, cuda, tensorrt, openvino, litert-xnnpack; several with commas. Default: each artifact's own."
SCENARIO_HELP = "single-stream, offline, or a TOML file. Default: batch 1 and 32, one thread, two seconds each."
PTQ_HELP = "Network, as a recipe's model.name takes it, or a run, whose float network and images are taken."
BUDGET_HELP = "0.6x of the bytes at 8 bits, bytes (120kB), or bit operations of an image (3.2Gbitops)."
CALIBRATION_HELP = "Images to calibrate and to test on: a data set, an .npz file, or a folder. Default: the run's."
CALIBRATOR_HELP = "What places clips: mse, min-max, percentile-99.9 or percentile-99.99."
READS_HELP = "Width of what inner layers read. Default: as their weights."
PAGE_HELP = "Default: RUN/report.html, of several comparison.html here; - is standard output."


def _recipe_names(incomplete: str) -> list[str]:
    """For completion in a shell."""
    from . import resources

    return [name for name, _ in resources.listing("recipes") if name.startswith(incomplete)]


IMAGES_HELP = "Of FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or of FOLDER/CLASS/*. Default: where you are."
MODEL_HELP = "What makes the run's own network, where its file has changed or moved; loaded whatever it holds."
FROM_HELP = "Take the float network of this run instead of training one."
EVENT_HELP = "A function that hears of epochs and stages: package.module:function or FILE.py:function."
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Name of a shipped recipe, or path of a TOML file.", autocompletion=_recipe_names
    ),
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "-o",
        "--override",
        metavar="KEY=VALUE",
        help="Override a value of the recipe, or with FILE.toml all that it holds; may be repeated.",
    ),
]
Out = Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="Run folder (default: runs/RECIPE).")]  # noqa: UP045
Network = Annotated[str, typer.Option("--model", metavar="FILE.py:FACTORY", help=MODEL_HELP)]
From = Annotated[Optional[Path], typer.Option("--from", metavar="RUN", help=FROM_HELP)]  # noqa: UP045
OnEvent = Annotated[str, typer.Option("--on-event", metavar="F", help=EVENT_HELP)]
Artifacts = Annotated[list[Path], typer.Argument(metavar="ARTIFACT|F.onnx...", help="Artifact folders, ONNX files.")]
Json = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--json", metavar="F", help="Write the full result to F; - is standard output."),
]
Sources = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--transfer", metavar="ARTIFACT|RUN", help=TRANSFER_HELP),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the gradient-free attack.")]


def radius(text: str) -> float | None:
    """The number that --eps says; None for none. Raises RecipeError for what is none."""
    try:
        return float(Fraction(text)) if text else None
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise RecipeError(f"expected --eps as 8/255, got {text!r}") from error


def numbers(option: str, text: str) -> tuple[float, ...]:
    """The numbers, fractions too, of a list with commas; () for an empty one. Raises RecipeError for what is none."""
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(",")) if text else ()
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise RecipeError(f"expected --{option} as 0.5 or 0.48,0.45,0.4, got {text!r}") from error


def counts(option: str, text: str) -> list[int] | None:
    """The numbers of a list with commas; None for an empty one. Raises RecipeError for what is none."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdigit() for part in parts):
        dashes = "-" if len(option) == 1 else "--"
        raise RecipeError(f"expected {dashes}{option} as 1,32, got {text!r}")
    return [int(part) for part in parts] or None
