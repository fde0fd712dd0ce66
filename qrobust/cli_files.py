"""The verbs of files that are deployed: `qrobust export`, `bench`, `check`, `report` and `attack`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .cli_options import (
    ARTIFACTS_HELP,
    BASELINE_HELP,
    DATA_HELP,
    EXPORT_DATA_HELP,
    FILE_HELP,
    INPUT_HELP,
    MEAN_HELP,
    OUTPUT_HELP,
    PAGE_HELP,
    PROVIDER_HELP,
    SCENARIO_HELP,
    TARGET_HELP,
    Artifacts,
    Json,
    Network,
    Seed,
    Sources,
    counts,
    numbers,
    radius,
)
from .cli_output import console, print_flags, say, write_result

app = typer.Typer()


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|F.onnx", help="Run folder, or somebody's ONNX file.")],
    target: Annotated[str, typer.Option("--target", metavar="NAME|PATH", help=TARGET_HELP)] = "",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help=ARTIFACTS_HELP)] = Path("artifacts"),
    input: Annotated[str, typer.Option("--input", metavar="KIND", help=INPUT_HELP)] = "",
    model: Network = "",
    data: Annotated[str, typer.Option("--data", metavar="F.npz|DIR|NAME", help=EXPORT_DATA_HELP)] = "",
    root: Annotated[Optional[str], typer.Option("--root", metavar="DIR", help="Of the data set.")] = None,  # noqa: UP045
    eps: Annotated[str, typer.Option("--eps", metavar="E", help="F.onnx: as 8/255, which is the default.")] = "",
    n: Annotated[Optional[int], typer.Option("-n", metavar="N", help="F.onnx: images of the suite (300).")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option("--seed", metavar="N", help="F.onnx: of images and attacks.")] = None,  # noqa: UP045
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="F.onnx: of the artifact (its folder's).")] = "",
    classes: Annotated[str, typer.Option("--classes", metavar="A,B,...", help="F.onnx: names of its classes.")] = "",
    mean: Annotated[str, typer.Option("--mean", metavar="M,...", help=MEAN_HELP)] = "",
    std: Annotated[str, typer.Option("--std", metavar="S,...", help="F.onnx: as --mean.")] = "",
    output: Annotated[str, typer.Option("--output", metavar="NAME", help=OUTPUT_HELP)] = "",
) -> int:
    """Export every width of a run for a deployment target; or make an artifact of somebody's ONNX file."""
    given = {"data": data, "root": root, "eps": eps, "n": n, "seed": seed, "name": name, "classes": classes,
             "mean": mean, "std": std, "output": output}  # fmt: skip
    if source.is_file() or source.suffix == ".onnx":
        _refuse({"input": input, "model": model}, "a run folder", f"the file {source}")
        _export_file(source, target, out, given)
        return 0
    _refuse(given, "an ONNX file", f"the folder {source}")
    from .errors import ExportError, did_you_mean
    from .export.target import load_target
    from .export.write import INPUTS
    from .runs.run import Run
    from .tables import artifact_text

    if input and input not in INPUTS:
        raise ExportError(f"expected --input {' or '.join(INPUTS)}, got {input!r}{did_you_mean(input, INPUTS)}")
    chosen, run, screen = load_target(target or "ort-cpu"), Run.open(source, model=model), console()
    for bits in run.recipe.bits:
        say(screen, artifact_text(run.export(bits, chosen, out / f"qm-{bits}", input or None)))
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
    """Time artifacts and bare ONNX files side by side in one run, with their memory, size and robustness."""
    from .bench.measure import Scenario, load_scenario
    from .bench.measure import bench as measure
    from .bench.plot import expect_image
    from .bench.plot import plot as draw
    from .export.sessions import opened
    from .storage import expect_place
    from .tables import artifact_table, timing_table

    screen = console(json)
    if plot:
        expect_image(plot)  # before minutes of timing
        expect_place(plot)
    settings = (load_scenario(scenario) if scenario else Scenario()).changed(
        counts("batch", batch), counts("threads", threads), seconds
    )
    providers = [name.strip() for name in provider.split(",") if name]
    result = measure([opened(one) for one in artifacts], settings, providers=providers)
    write_result(json, result)
    screen.print(timing_table(result), artifact_table(result))
    if plot:
        draw(result, plot)
    return 0


@app.command()
def check(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Artifact folder.")],
    baseline: Annotated[Optional[str], typer.Option("--baseline", metavar="NAME|F", help=BASELINE_HELP)] = None,  # noqa: UP045
    update: Annotated[bool, typer.Option("--update-baseline", help="Pin outcomes and limits, to F if given.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why the baseline changes.")] = "",
    json: Annotated[Optional[str], typer.Option("--json", metavar="F", help="Write all of it to F; -: print.")] = None,  # noqa: UP045
    junit: Annotated[Optional[str], typer.Option("--junit", metavar="F", help="Write JUnit XML to F.")] = None,  # noqa: UP045
    markdown: Annotated[Optional[str], typer.Option("--markdown", metavar="F", help="Write Markdown to F.")] = None,  # noqa: UP045
    queries: Annotated[Optional[int], typer.Option("--queries", metavar="N", help="Queries an image.")] = None,  # noqa: UP045
    seed: Seed = 0,
    timeout: Annotated[Optional[float], typer.Option("--timeout", metavar="S", help="End it after S seconds.")] = None,  # noqa: UP045
    memory: Annotated[Optional[float], typer.Option("--memory", metavar="GIB", help="Most memory (Linux).")] = None,  # noqa: UP045
) -> int:
    """Check an artifact on its runtime: integrity, parity, replayed suite, gradient-free attack."""
    import ctypes
    import signal
    import subprocess
    import sys

    found = _baseline(baseline) if baseline and not update else baseline
    options: dict[str, object] = {"baseline": found, "json": json, "junit": junit, "markdown": markdown}
    options |= {"queries": queries, "seed": seed, "reason": reason, "timeout": timeout, "memory": memory}
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    # This installation's verify.py, not the artifact's; it is no import, since numpy may fail where memory is limited.
    program = [sys.executable, "-I" if sys.flags.isolated else "-P", str(Path(__file__).with_name("runtime.py"))]
    command = [*program, *given, *(["--update-baseline"] if update else []), "--", artifact]
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    # PR_SET_PDEATHSIG: the check ends with this process.
    follow = None if libc is None else lambda: libc.prctl(1, signal.SIGTERM)
    with subprocess.Popen(command, preexec_fn=follow) as process:
        try:
            code = process.wait()
        finally:
            process.terminate()
    raise typer.Exit(code if code in (0, 1) else 2)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...|ARTIFACT", help="Of evaluated networks.")],
    out: Annotated[Optional[Path], typer.Option("--out", metavar="F", help=PAGE_HELP)] = None,  # noqa: UP045
) -> int:
    """Write one self-contained HTML page on a run, with model-card.md beside it, on several, or on an artifact."""
    screen = console(out)
    from .report import write, write_comparison

    say(screen, f"report: {write(folders[0], out) if len(folders) == 1 else write_comparison(folders, out)}")
    return 0


@app.command()
def attack(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT|F.onnx", help="Artifact folder, or any classifier.")],
    attacks: Annotated[str, typer.Option("--attacks", metavar="LIST", help=FILE_HELP)] = "",
    n: Annotated[Optional[int], typer.Option("-n", metavar="N", help="Images (default: all).")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of starts and of Square.")] = 0,
    transfer: Sources = None,
    eps: Annotated[str, typer.Option("--eps", metavar="E", help="As 8/255. Default: the artifact's, or 8/255.")] = "",
    data: Annotated[str, typer.Option("--data", metavar="F.npz|NAME", help=DATA_HELP)] = "",
    root: Annotated[Optional[str], typer.Option("--root", metavar="DIR", help="Of the data set.")] = None,  # noqa: UP045
    json: Json = None,
) -> int:
    """Attack the file itself, white-box and black-box, on its runtime; with --json it goes on where it was stopped."""
    # Before torch: a wrong number or place is told at once.
    ball, screen = radius(eps), console(json)
    from .attacks import attack_names
    from .deployed.attack import Settings, attack_file
    from .tables import attack_table

    settings = Settings(attack_names(attacks), n, seed, ball)
    result = attack_file(artifact, settings, transfer=transfer or (), data=data, root=root, json=json)
    screen.print(attack_table(result))
    print_flags(screen, result["artifact"]["name"], result)
    return 0


def _refuse(options: Mapping[str, object], fitting: str, got: str) -> None:
    """Raises RecipeError for options that are given and have no use here."""
    from .errors import RecipeError

    if wrong := [name for name, value in options.items() if value not in ("", None)]:
        dashes = "-" if len(wrong[0]) == 1 else "--"
        raise RecipeError(f"expected {dashes}{wrong[0]} with {fitting}, got {got}; leave it out")


def _export_file(path: Path, target: str, out: Path, given: Mapping[str, Any]) -> None:
    ball = radius(given["eps"])
    mean, std = (numbers(name, given[name]) for name in ("mean", "std"))
    from .deployed.given import FileConfig, export_named
    from .tables import artifact_text, source_lines
    from .threat import Threat

    config = FileConfig(
        name=given["name"] or None,
        classes=tuple(one.strip() for one in given["classes"].split(",")) if given["classes"] else None,
        n=FileConfig.n if given["n"] is None else given["n"],
        seed=given["seed"] or 0,
        mean=mean,
        std=std,
        output=given["output"] or None,
    )
    data, threat = (given["data"], given["root"]), Threat("linf", 8 / 255 if ball is None else ball)
    made = export_named(path, data, threat=threat, out=out, target=target, config=config)
    screen = console()
    for line in source_lines(made.manifest):
        say(screen, line)
    say(screen, artifact_text(out))
    print_flags(screen, made.name, made.manifest["metrics"]["before"])


def _baseline(name: str) -> Path:
    """A baseline as targets are found: a path wins, then the checkout's export/baselines, then what is installed."""
    from . import resources

    shelves = [folder / "baselines" / f"{name.removesuffix('.json')}.json" for folder in resources.folders("export")]
    return next((path for path in (Path(name), *shelves) if path.is_file()), Path(name))
