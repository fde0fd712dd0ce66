"""The verbs of the zoo: `qrobust zoo list`, `get` and `push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .cli_output import console, say

zoo = typer.Typer(
    name="zoo", help="Robust quantised networks to download.", no_args_is_help=True, rich_markup_mode=None
)

MORE_HELP = "Of `qrobust eval RUN --json FILE` by more attacks; may be repeated."


@zoo.command("list")
def list_networks() -> int:
    """List the networks of the zoo."""
    from .zoo import listing

    screen = console()
    for name, words in listing():
        say(screen, f"{name:<36} {words}")
    return 0


@zoo.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `qrobust zoo list` has it.")],
    out: Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="New folder (default: NAME).")] = None,  # noqa: UP045
    root: Annotated[Optional[str], typer.Option("--root", metavar="DIR", help="Of the data (default: data).")] = None,  # noqa: UP045
) -> int:
    """Write a network as an artifact, its suite rebuilt on your copy of the data set."""
    from .zoo import PREFIX
    from .zoo import get as write_artifact

    place = out or Path(name.removeprefix(PREFIX))
    made = write_artifact(name, place, root)
    say(console(), f"artifact: {place}, {len(made.suite['y'])} images in its suite; next: qrobust check {place}")
    return 0


@zoo.command()
def push(
    source: Annotated[Path, typer.Argument(metavar="RUN/qm-N|ARTIFACT", help="Network of a finished run.")],
    name: Annotated[str, typer.Option("--name", metavar="N", help="As cifar10-resnet20-w4a8.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder.")],
    license: Annotated[str, typer.Option("--license", metavar="L", help="SPDX.")] = "apache-2.0",
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="One line.")] = "",
    evaluation: Annotated[Optional[list[Path]], typer.Option("--evaluation", metavar="FILE", help=MORE_HELP)] = None,  # noqa: UP045
) -> int:
    """Write a network as a folder that a model hub takes, or export/zoo/NAME; nothing is sent."""
    from .runs.publish import Listing, push
    from .storage import described
    from .zoo.entries import INDEX

    made = push(source, out, Listing(name, license, description, tuple(evaluation or ())))
    digest = described((made.folder / INDEX).read_bytes())["sha256"]
    say(console(), f"entry: {out}: move it to export/zoo/{name}, or upload it and pin the sha256 of {INDEX}, {digest}")
    return 0
