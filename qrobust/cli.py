"""The command line: thin verbs. Torch is loaded by the verbs that need it, not by `--help` or `check`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from .run import Run

TABLE_WIDTH = 150  # columns, where output is no terminal

app = typer.Typer(
    name="qrobust",
    help="From a recipe to a quantised ONNX network whose robustness to attack is known before and after export.\n\n"
    "Exit codes: 0 held, 1 it ran and a limit was broken, 2 it could not run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ATTACKS_HELP = (
    "Names with commas, as gn,fgsm,pgd-20,cw-inf-30,autoattack; or a protocol: fd (the columns of the "
    "Fourier-domain study), sp (of the spectral perspective). Default: the recipe's."
)
INPUT_HELP = "float32-nchw: images in [0,1]; uint8-nhwc: a camera's bytes. Default: the recipe's."
BASELINE_HELP = "Compare with pinned outcomes: a file, or a name in export/baselines."
PROVIDER_HELP = "cpu, cuda, tensorrt, openvino; several with commas. Default: each artifact's own."
SCENARIO_HELP = "single-stream, offline, or a TOML file. Default: batch 1 and 32, one thread, two seconds each."
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or path of a TOML file.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override a value of the recipe; may be repeated."),
]
Out = Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="Run folder (default: runs/RECIPE).")]  # noqa: UP045
Artifacts = Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifact folders.")]
Json = Annotated[Optional[Path], typer.Option("--json", metavar="F", help="Write the full result to F.")]  # noqa: UP045
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the gradient-free attack.")]


@app.command()
def run(recipe: RecipeName, override: Overrides = None, out: Out = None, json: Json = None) -> int:
    """Train, quantize, evaluate, export, bench and check; continues where it stopped."""
    from rich.console import Console

    from .summary import table

    started = _open(recipe, override, out)
    with _joined():
        result = started.all_stages()
    if result is None:  # another process has it
        return 0
    _write(json, result)
    console = Console()
    console = console if console.is_terminal else Console(width=TABLE_WIDTH)
    console.print(table(result))
    for width in result["widths"]:
        for verdict in width["broken"]:
            print(f"QM-{width['bits']} broke {verdict['name']}: {verdict['reason']}; {verdict['hint']}")
    print(f"report: {started.folder / 'report.json'}")
    return 0 if result["passed"] else 1


@app.command()
def train(recipe: RecipeName, override: Overrides = None, out: Out = None) -> int:
    """Train the float network and quantise it to every width of the recipe; continues where it stopped."""
    started = _open(recipe, override, out)
    with _joined():
        started.train()
        if _speaks():
            print(f"networks: {started.folder}")
    return 0


@app.command("eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN|ARTIFACT", help="Run folder, RUN/qm-N, or an artifact.")],
    attacks: Annotated[str, typer.Option("--attacks", metavar="LIST", help=ATTACKS_HELP)] = "",
    n: Annotated[Optional[int], typer.Option("-n", metavar="N", help="Test images (default: all).")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option("--seed", metavar="N", help="Default: the recipe's.")] = None,  # noqa: UP045
    doubt: Annotated[
        bool, typer.Option("--doubt", help="Ask every doubt of docs/flags.md, not the cheap ones only.")
    ] = False,
    average: Annotated[bool, typer.Option("--average", help="The weight averages of a run's networks.")] = False,
    json: Json = None,
) -> int:
    """Attack the networks of a run, or an artifact; with --json it goes on where it was stopped."""
    from rich.console import Console

    from .summary import evaluation_table
    from .verbs import evaluate_folder

    with _joined():
        results = evaluate_folder(folder, attacks, n, seed, json, thorough=doubt, averaged=average)
        if not _speaks():
            return 0
    console = Console()
    console = console if console.is_terminal else Console(width=TABLE_WIDTH)
    console.print(evaluation_table(results))
    for name, result in results.items():
        for flag in result["flags"]:
            print(
                f"{name} flag {flag['name']}: {flag['measured']:.3g} > {flag['limit']:.3g}: "
                f"{flag['reason']}; {flag['hint']}"
            )
    return 0


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="Result of qrobust eval --json.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another on the same images.")],
    json: Json = None,
) -> int:
    """Compare two evaluations image by image: difference, exact McNemar p-value, images gained and lost."""
    from .evaluate import compare as paired

    result = paired(first, second)
    _write(json, result)
    print(f"{'set':<20}{'first':>9}{'second':>9}{'change':>9}{'p':>10}  gained  lost   ({result['n']} images)")
    for name, row in result["sets"].items():
        shares = "".join(f"{row[key]:>9.1%}" for key in ("first", "second"))
        moved = f"{len(row['gained']):>8}{len(row['lost']):>6}"
        print(f"{name:<20}{shares}{row['difference']:>+9.1%}{row['p_value']:>10.2g}{moved}")
    return 0


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder with evaluated networks.")],
    target: Annotated[str, typer.Option("--target", metavar="NAME|PATH", help="Deployment target.")] = "ort-cpu",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the artifacts, one a width.")] = Path(
        "artifacts"
    ),
    input: Annotated[str, typer.Option("--input", metavar="KIND", help=INPUT_HELP)] = "",
) -> int:
    """Export every width of a run for a deployment target."""
    from .errors import ExportError, did_you_mean
    from .export import INPUTS, load_target
    from .run import Run

    if input and input not in INPUTS:
        raise ExportError(f"expected --input {' or '.join(INPUTS)}, got {input!r}{did_you_mean(input, INPUTS)}")
    chosen, source = load_target(target), Run.open(folder)
    for bits in source.recipe.bits:
        print(source.export(bits, chosen, out / f"qm-{bits}", input or None))
    return 0


@app.command()
def bench(
    artifacts: Artifacts,
    provider: Annotated[str, typer.Option("--provider", metavar="NAME,...", help=PROVIDER_HELP)] = "",
    batch: Annotated[str, typer.Option("--batch", metavar="N,N", help="Batch sizes (default: the scenario's).")] = "",
    threads: Annotated[str, typer.Option("--threads", metavar="N,N", help="Threads a session; 0: all.")] = "",
    seconds: Annotated[Optional[float], typer.Option("--seconds", help="Least time a batch size and count.")] = None,  # noqa: UP045
    scenario: Annotated[str, typer.Option("--scenario", metavar="NAME|PATH", help=SCENARIO_HELP)] = "",
    plot: Annotated[Optional[Path], typer.Option("--plot", metavar="F", help="Draw accuracy against cost.")] = None,  # noqa: UP045
    json: Json = None,
) -> int:
    """Time artifacts side by side in one run, with their memory, size and robustness."""
    from rich.console import Console

    from .bench import Scenario, load_scenario
    from .bench import bench as measure
    from .bench.plot import expect_image
    from .bench.plot import plot as draw
    from .bench.tables import facts, timings
    from .runtime import Artifact

    if plot:
        expect_image(plot)  # before minutes of timing
    settings = (load_scenario(scenario) if scenario else Scenario()).changed(
        _counts("batch", batch), _counts("threads", threads), seconds
    )
    providers = [name.strip() for name in provider.split(",") if name]
    result = measure([Artifact.load(a) for a in artifacts], settings, providers=providers)
    _write(json, result)
    console = Console()
    console = console if console.is_terminal else Console(width=TABLE_WIDTH)
    console.print(timings(result), facts(result))
    if plot:
        draw(result, plot)
    return 0


@app.command()
def check(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder.")],
    baseline: Annotated[str, typer.Option("--baseline", metavar="NAME|F", help=BASELINE_HELP)] = "",
    update: Annotated[bool, typer.Option("--update-baseline", help="Pin the outcomes, to F if given.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why the baseline changes.")] = "",
    json: Json = None,
    junit: Annotated[Optional[Path], typer.Option("--junit", metavar="F", help="Write JUnit XML to F.")] = None,  # noqa: UP045
    markdown: Annotated[Optional[Path], typer.Option("--markdown", metavar="F", help="Write Markdown to F.")] = None,  # noqa: UP045
    queries: Annotated[Optional[int], typer.Option("--queries", metavar="N", help="Queries an image.")] = None,  # noqa: UP045
    seed: Seed = 0,
) -> int:
    """Check an artifact on its runtime: integrity, parity, replayed suite, gradient-free attack."""
    from . import runtime
    from .progress import bar

    loaded = runtime.Artifact.load(artifact)
    pin = runtime.pinned_at(loaded, Path(baseline) if baseline else None, update, reason)
    against = _baseline(baseline) if baseline and not update else None
    steps = queries or int(loaded.manifest["square"]["queries"])
    with bar("check", steps, "queries") as moving:
        report = runtime.check(
            loaded,
            baseline=against,
            queries=queries,
            seed=seed,
            on_step=lambda _done, _total: moving.advance(),
        )
    return runtime.conclude(report, {"json": json, "junit": junit, "markdown": markdown, "baseline": pin}, reason)


@app.command()
def recipes() -> int:
    """List the shipped recipes."""
    from . import resources

    for name, path in resources.listing("recipes"):
        print(f"{name:<44} {_first_comment(path)}")
    return 0


@app.command()
def targets() -> int:
    """List the shipped deployment targets."""
    from . import resources

    for name, path in resources.listing("export"):
        print(f"{name:<28} {resources.read_toml(path).get('description', '')}")
    return 0


@app.command()
def doctor() -> int:
    """Show versions, devices and onnxruntime's providers; exit 1 if something needed is missing."""
    from .doctor import findings

    result = findings()
    for finding in result:
        print(f"{'ok' if finding.passed else 'missing':<8} {finding.name:<20} {finding.reason}")
        if not finding.passed:
            print(f"{'':<8} {finding.hint}")
    return 0 if all(finding.passed for finding in result) else 1


def _open(name: str, overrides: list[str] | None, out: Path | None) -> Run:
    from .recipe import load

    settings = load(name, overrides or ())  # before torch: a wrong recipe is told at once
    from .run import Run

    return Run(settings, out or Path("runs") / settings.name)


def _joined() -> AbstractContextManager[None]:
    from .distributed import joined

    return joined()


def _baseline(name: str) -> Path:
    """A baseline as targets are found: a path wins, then the checkout's export/baselines, then what is installed."""
    from . import resources

    shelves = [folder / "baselines" / f"{name.removesuffix('.json')}.json" for folder in resources.folders("export")]
    return next((path for path in (Path(name), *shelves) if path.is_file()), Path(name))


def _speaks() -> bool:
    from .distributed import is_first

    return is_first()


def _counts(option: str, text: str) -> list[int] | None:
    from .errors import RecipeError

    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdigit() for part in parts):
        raise RecipeError(f"expected --{option} as 1,32, got {text!r}")
    return [int(part) for part in parts] or None


def _write(path: Path | None, result: object) -> None:
    if path is not None:
        from .storage import write_json

        write_json(path, result)


def _first_comment(path: Path) -> str:
    line = path.read_text().partition("\n")[0]
    return line.removeprefix("# ") if line.startswith("#") else ""
