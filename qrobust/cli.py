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
) -> int:
    """Export every width of a run for a deployment target."""
    from .export import load_target
    from .run import Run

    chosen, source = load_target(target), Run.open(folder)
    for bits in source.recipe.bits:
        print(source.export(bits, chosen, out / f"qm-{bits}"))
    return 0


@app.command()
def bench(
    artifacts: Artifacts,
    batch: Annotated[str, typer.Option("--batch", metavar="N,N", help="Batch sizes.")] = "1,32",
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=0, help="Threads a session; 0: all.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Least time a batch size.")] = 2.0,
    json: Json = None,
) -> int:
    """Time artifacts side by side in one run."""
    from .bench import bench as measure
    from .runtime import Artifact

    sizes = _sizes(batch)
    result = measure([Artifact.load(a) for a in artifacts], batches=sizes, threads=threads, seconds=seconds)
    _write(json, result)
    for row in result["results"]:
        times = f"p50 {row['p50_ms']:8.3f} ms  p90 {row['p90_ms']:8.3f} ms  {row['images_per_second']:9.0f} images/s"
        print(f"{row['name']:<28} batch {row['batch']:>4}  {times}  {row['speedup']:5.2f} × {result['twin']}")
    return 0


@app.command()
def check(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder.")],
    json: Json = None,
    queries: Annotated[Optional[int], typer.Option("--queries", metavar="N", help="Queries an image.")] = None,  # noqa: UP045
    seed: Seed = 0,
) -> int:
    """Check an artifact on its runtime: integrity, parity, replayed suite, gradient-free attack."""
    from .progress import bar
    from .runtime import Artifact, format_report
    from .runtime import check as judge

    loaded = Artifact.load(artifact)
    steps = len(loaded.sets) + (queries or int(loaded.manifest["square"]["queries"]))
    with bar("check", steps, "steps") as moving:
        report = judge(loaded, queries=queries, seed=seed, on_step=lambda _done, _total: moving.advance())
    _write(json, report.to_dict())
    print(format_report(report))
    return 0 if report.passed else 1


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


def _speaks() -> bool:
    from .distributed import is_first

    return is_first()


def _sizes(text: str) -> list[int]:
    from .errors import RecipeError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise RecipeError(f"expected batch sizes as 1,32, got {text!r}")
    return [int(part) for part in parts]


def _write(path: Path | None, result: object) -> None:
    if path is not None:
        from .storage import write_json

        write_json(path, result)


def _first_comment(path: Path) -> str:
    line = path.read_text().partition("\n")[0]
    return line.removeprefix("# ") if line.startswith("#") else ""
