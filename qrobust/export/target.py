"""Deployment targets: where a network must run, and what must hold there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .. import resources
from ..recipe import Table, checked

Share = Annotated[float, Field(ge=0, le=1)]


class Session(Table):
    """How the runtime opens the file."""

    graph_optimization_level: Literal["disable", "basic", "extended", "all"] = "all"
    intra_op_num_threads: Annotated[int, Field(ge=0)] = 0


class Limits(Table):
    """What a check of the artifact tolerates; shares of images, differences of accuracies."""

    label_flips: Share
    accuracy_drop: Share
    robust_drop: Share
    square_gap: Share


class Square(Table):
    """The gradient-free attack of a check: queries an image, number of images."""

    queries: Annotated[int, Field(gt=0)]
    n: Annotated[int, Field(gt=0)]


class Target(Table):
    """One deployment target, as a TOML file in `export/` states it."""

    name: str
    description: str
    provider: str
    storage: Literal["true-width", "int8"] = "true-width"
    integer_convolutions: bool = True
    session: Session = Session()
    limits: Limits
    square: Square


def load_target(name: str) -> Target:
    """The target of a name or path. Raises RecipeError for one that is missing or wrong."""
    path = resources.find("export", name)
    return checked(Target, {"name": path.stem, **resources.read_toml(path)}, source=str(path))
