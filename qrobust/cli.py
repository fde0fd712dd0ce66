"""The command line: thin verbs. Torch is loaded by the verbs that need it, not by `--help` or `check`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from .cli_files import app as files
from .cli_options import (
    ATTACKS_HELP,
    BANDWIDTHS_HELP,
    BUDGET_HELP,
    CALIBRATION_HELP,
    CALIBRATOR_HELP,
    FIGURES_HELP,
    IMAGES_HELP,
    PERTURBATIONS_HELP,
    PTQ_HELP,
    READS_HELP,
    RUNS_HELP,
    SANITY_HELP,
    From,
    Json,
    Network,
    OnEvent,
    Out,
    Overrides,
    RecipeName,
    counts,
)
from .cli_output import console, print_flags, say, write_result
from .cli_zoo import zoo

if TYPE_CHECKING:
    from .runs.run import Run

VOLUME = ("-q", "--quiet", "-v", "--verbose")


class _Verbs(TyperGroup):
    """The verbs; how much is said may also be asked for behind one of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options of the volume, wherever they stand, are those of the whole command."""
        end = args.index("--") if "--" in args else len(args)
        asked = [one for one in args[:end] if one in VOLUME]
        return super().parse_args(ctx, [*asked, *(one for one in args[:end] if one not in VOLUME), *args[end:]])


app = typer.Typer(
    name="qrobust",
    cls=_Verbs,
    help="From a recipe to a quantised ONNX network whose robustness to attack is known before and after export.\n\n"
    "Exit codes: 0 held, 1 it ran and a limit was broken, 2 it could not run; 70 a fault of qrobust's own.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


app.add_typer(zoo)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(f"qrobust {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors and the result only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Also threads, and why a stage is done.")] = False,
) -> None:
    from .errors import QrobustError
    from .progress import set_volume

    if quiet and verbose:
        raise QrobustError("expected -q or -v, got both; leave one out")
    set_volume(quiet=quiet, verbose=verbose)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help=IMAGES_HELP, show_default=False)] = Path(),
    out: Annotated[Optional[Path], typer.Option("--out", metavar="F.toml", help="Default: FOLDER's name.")] = None,  # noqa: UP045
) -> int:
    """Write a recipe for a folder of your own images, and say why it is as it is."""
    screen = console()
    from .runs.init import init as write_recipe

    path, reasons = write_recipe(folder, out)
    for reason in reasons:
        say(screen, f"  {reason}")
    say(screen, f"recipe: {path}; next: qrobust run {path}")
    return 0


@app.command()
def run(
    recipe: RecipeName,
    override: Overrides = None,
    out: Out = None,
    source: From = None,
    model: Network = "",
    json: Json = None,
    on_event: OnEvent = "",
) -> int:
    """Train, quantize, evaluate, export, bench, check and attack the file; continues where it stopped."""
    return _all_stages(_open(recipe, override, out, source, model, on_event), json)


def _all_stages(started: Run, json: Path | None) -> int:
    """A run from its beginning to its report, printed; the exit code."""
    from .report import write
    from .tables import headline_table, places_table, run_table

    screen = console(json)
    _expect_figures(started)
    with _joined():
        result = started.all_stages()
    if result is None:  # another process has it
        return 0
    write_result(json, result)
    screen.print(headline_table(result), run_table(result))
    if (by_place := places_table(result)) is not None:
        screen.print(by_place)
    for width in result["widths"]:
        for verdict in width["broken"]:
            say(screen, f"QM-{width['bits']} broke {verdict['name']}: {verdict['reason']}; {verdict['hint']}")
        print_flags(screen, f"QM-{width['bits']}", width)
    _analyze(started)
    say(screen, f"report: {write(started.folder)}")
    return 0 if result["passed"] else 1


def _expect_figures(started: Run) -> None:
    """Raises RecipeError for a name that is none, before the hours."""
    from .analysis import chosen

    if started.recipe.analyze is not None:
        chosen(",".join(started.recipe.analyze.figures))


def _analyze(started: Run) -> None:
    """The figures of a recipe; what stands in their way is said, since all else is done."""
    from .errors import QrobustError
    from .progress import note

    asked = started.recipe.analyze
    if asked is None:
        return
    from .analysis.cases import Settings
    from .analysis.session import analyze as measure

    try:
        measure([started.folder], asked.figures, Settings(asked.n, started.recipe.seed))
    except QrobustError as error:
        note(f"analysis: left out: {error}")


@app.command()
def ptq(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help=PTQ_HELP)],
    weights: Annotated[str, typer.Option("--weights", metavar="F", help="The network's: .safetensors or .pth.")] = "",
    data: Annotated[str, typer.Option("--data", metavar="D", help=CALIBRATION_HELP)] = "",
    root: Annotated[Optional[str], typer.Option("--root", metavar="DIR", help="Where the data set lies.")] = None,  # noqa: UP045
    bits: Annotated[str, typer.Option("--bits", metavar="N[,N]", help="Widths of weights and activations.")] = "8",
    activation_bits: Annotated[Optional[int], typer.Option("--activation-bits", metavar="N", help=READS_HELP)] = None,  # noqa: UP045
    target: Annotated[str, typer.Option("--target", metavar="T", help="Deployment target, or its file.")] = "ort-cpu",
    calibrator: Annotated[str, typer.Option("--calibrator", metavar="C", help=CALIBRATOR_HELP)] = "mse",
    images: Annotated[int, typer.Option("--images", metavar="N", help="Training images that calibrate.")] = 512,
    adaround: Annotated[int, typer.Option("--adaround", metavar="STEPS", help="Of a layer; 0: to nearest.")] = 100,
    bias_correction: Annotated[bool, typer.Option(help="Whether biases take what rounding leaves on average.")] = True,
    equalize: Annotated[
        bool, typer.Option("--equalize", help="Cross-layer equalisation, for depthwise layers.")
    ] = False,
    override: Overrides = None,
    out: Out = None,
    json: Json = None,
) -> int:
    """Quantise a trained network without training: artifact, parity, suite, check and report; continues likewise."""
    from .runs.posttraining import Request, recipe_for
    from .runs.run import Run

    asked = Request(model, weights, data, root, counts("bits", bits) or (8,), target)
    repair = {"bias_correction": bias_correction, "adaround": adaround, "equalize": equalize}
    quant = {"calibrator": calibrator, "calibration": images, "activation_bits": activation_bits, "ptq": repair}
    name = out.name if out is not None else f"{Path(model.rpartition(':')[2]).stem}-ptq"
    return _all_stages(Run(recipe_for(asked, override or (), name=name, quant=quant), out or Path("runs") / name), json)


@app.command()
def train(
    recipe: RecipeName,
    override: Overrides = None,
    out: Out = None,
    source: From = None,
    model: Network = "",
    on_event: OnEvent = "",
) -> int:
    """Train the float network and quantise it to every width of the recipe; continues where it stopped."""
    started = _open(recipe, override, out, source, model, on_event)
    with _joined():
        started.train()
        if _speaks():
            say(console(), f"networks: {started.folder}")
    return 0


@app.command()
def allocate(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help=PTQ_HELP)],
    budget: Annotated[str, typer.Option("--budget", metavar="B", help=BUDGET_HELP)],
    weights: Annotated[str, typer.Option("--weights", metavar="F", help="The network's: .safetensors or .pth.")] = "",
    data: Annotated[str, typer.Option("--data", metavar="D", help=CALIBRATION_HELP)] = "",
    root: Annotated[Optional[str], typer.Option("--root", metavar="DIR", help="Where the data set lies.")] = None,  # noqa: UP045
    widths: Annotated[
        str, typer.Option("--widths", metavar="N,N", help="That a layer may have besides 8.")
    ] = "2,3,4,6",
    n: Annotated[int, typer.Option("-n", metavar="N", help="Training images that margins are measured on.")] = 256,
    plot: Annotated[Optional[Path], typer.Option("--plot", metavar="F", help="The front: .png, .svg.")] = None,  # noqa: UP045
    override: Overrides = None,
    out: Out = None,
    json: Json = None,
) -> int:
    """Give each layer the bits that lose least margin under attack within a budget; continues where it stopped."""
    from .bench.plot import expect_image, plot_front
    from .runs.allocation import Request as Asked
    from .runs.allocation import allocate as allocated
    from .runs.posttraining import Request, recipe_for
    from .storage import expect_place
    from .tables import allocation_table

    screen, asked = console(json), Asked(budget, counts("widths", widths) or (), n)
    if plot:
        expect_image(plot)
        expect_place(plot)
    name = out.name if out is not None else f"{Path(model.rpartition(':')[2]).stem}-bits"
    settings = recipe_for(Request(model, weights, data, root), override or (), name=name, quant={"ptq": {}})
    place = out or Path("runs") / name
    result = allocated(settings, place, asked)
    write_result(json, result)
    screen.print(allocation_table(result))
    if plot:
        plot_front(result, plot)
    say(screen, f"bits: {place / 'layers.toml'}; for ptq, run and train: -o {place / 'layers.toml'}")
    return 0


@app.command("eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN|ARTIFACT", help="Run folder, RUN/qm-N, or an artifact.")],
    attacks: Annotated[str, typer.Option("--attacks", metavar="LIST", help=ATTACKS_HELP)] = "",
    n: Annotated[Optional[int], typer.Option("-n", metavar="N", help="Test images (default: all).")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option("--seed", metavar="N", help="Default: the recipe's.")] = None,  # noqa: UP045
    sanity: Annotated[bool, typer.Option("--sanity", "--doubt", help=SANITY_HELP)] = False,
    average: Annotated[bool, typer.Option("--average", help="The weight averages of a run's networks.")] = False,
    model: Network = "",
    json: Json = None,
) -> int:
    """Attack the networks of a run, or an artifact; with --json it goes on where it was stopped."""
    screen = console(json)
    from .runs.evaluation import Request
    from .runs.run import evaluate_folder
    from .tables import evaluation_table

    with _joined():
        results = evaluate_folder(folder, attacks, Request(n, seed, json, sanity), averaged=average, model=model)
        if not _speaks():
            return 0
    screen.print(evaluation_table(results))
    for name, result in results.items():
        print_flags(screen, name, result)
    return 0


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="Result of qrobust eval --json.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another on the same images.")],
    json: Json = None,
) -> int:
    """Compare two evaluations image by image: difference, exact McNemar p-value, images gained and lost."""
    screen = console(json)
    from .errors import one_line
    from .evaluation import compare as paired

    result = paired(first, second)
    write_result(json, result)
    to = screen.file
    print(f"{'set':<20}{'first':>9}{'second':>9}{'change':>9}{'p':>10}  gained  lost   ({result['n']} images)", file=to)
    for name, row in result["sets"].items():
        shares = "".join(f"{row[key]:>9.1%}" for key in ("first", "second"))
        moved = f"{len(row['gained']):>8}{len(row['lost']):>6}"
        print(f"{one_line(name):<20}{shares}{row['difference']:>+9.1%}{row['p_value']:>10.2g}{moved}", file=to)
    return 0


@app.command()
def analyze(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help=RUNS_HELP)],
    figures: Annotated[str, typer.Option("--figures", metavar="LIST", help=FIGURES_HELP)] = "",
    n: Annotated[Optional[int], typer.Option("-n", metavar="N", help="Test images (default: 500, or all).")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of attacks and waves.")] = 0,
    bandwidths: Annotated[str, typer.Option("-k", metavar="K,K", help=BANDWIDTHS_HELP)] = "",
    attacks: Annotated[str, typer.Option("--attacks", metavar="LIST", help=PERTURBATIONS_HELP)] = "pgd-20",
    norm: Annotated[Optional[float], typer.Option("--norm", help="L2 norm of the heat map's waves.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="Default: RUN/analysis.")] = None,  # noqa: UP045
    model: Network = "",
    json: Json = None,
) -> int:
    """Look at networks in frequencies: data and figures, side by side; what is measured is not measured again."""
    from .analysis import chosen, redraw

    # Before torch: a wrong name is refused at once.
    names, ks, _ = chosen(figures), tuple(counts("k", bandwidths) or ()), console(json)
    found: Mapping[str, Any] | None = redraw(folders, out)
    if found is None:
        from .analysis.cases import Settings
        from .analysis.session import analyze as measure
        from .attacks import attack_names

        found = measure(folders, names, Settings(n, seed, ks, attack_names(attacks, ("pgd-20",)), norm), out, model)
    write_result(json, found)
    return 0


app.registered_commands += files.registered_commands


@app.command()
def recipes() -> int:
    """List the shipped recipes."""
    from . import resources

    screen = console()
    for name, found in resources.listing("recipes"):
        say(screen, f"{name:<44} {found.table.get('description', '')}")
    return 0


@app.command()
def targets() -> int:
    """List the shipped deployment targets."""
    from . import resources

    screen = console()
    for name, found in resources.listing("export"):
        say(screen, f"{name:<28} {found.table.get('description', '')}")
    return 0


@app.command()
def doctor() -> int:
    """Show versions, devices and onnxruntime's providers; exit 1 if something needed is missing."""
    from .devices import findings

    result = findings()
    for finding in result:
        print(f"{'ok' if finding.passed else 'missing':<8} {finding.name:<20} {finding.reason}")
        if not finding.passed:
            print(f"{'':<8} {finding.hint}")
    return 0 if all(finding.passed for finding in result) else 1


def _open(
    name: str, overrides: list[str] | None, out: Path | None, source: Path | None, model: str, on_event: str
) -> Run:
    from .recipe import load

    settings = load(name, overrides or ())  # before torch: a wrong recipe is told at once
    from .runs.networks import taken_from
    from .runs.run import Run
    from .train.listeners import load_listener

    if source is not None:
        settings = taken_from(settings, source, model)
    named = on_event or settings.on_event
    listener = load_listener(named) if named else None
    return Run(settings, out or Path("runs") / settings.name, model=model, on_event=listener)


def _joined() -> AbstractContextManager[None]:
    from .distributed import joined

    return joined()


def _speaks() -> bool:
    from .distributed import is_first

    return is_first()
