"""Scenarios: what is asked of an artifact, and for how long, as a TOML file in `benches/scenarios/` states it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from .. import resources
from ..recipe import CallSize, Count, Int, Seconds, Table, Threads, checked

SHELF = "benches/scenarios"
NotNegative = Annotated[Int, Field(ge=0)]


class Scenario(Table):
    """A way to load artifacts with work.

    batch: images a call. threads: of a session, 0 for as many as the runtime likes; each count is a run of
    its own. min_seconds: for each batch and thread count, all artifacts together. min_runs: of each artifact.
    warmup: runs that are not counted. metric: the figure that the scenario is about.
    """

    batch: Annotated[tuple[CallSize, ...], Field(min_length=1)] = (1, 32)
    threads: Annotated[tuple[Threads, ...], Field(min_length=1)] = (1,)
    min_seconds: Seconds = 2.0
    min_runs: Count = 20
    warmup: NotNegative = 5
    metric: Literal["p50_ms", "p90_ms", "p99_ms", "images_per_second"] = "p50_ms"

    def changed(
        self, batch: Sequence[int] | None = None, threads: Sequence[int] | None = None, seconds: float | None = None
    ) -> Scenario:
        """The same with other settings, where they are given. Raises RecipeError for one that cannot be."""
        given: dict[str, Any] = {"batch": batch, "threads": threads, "min_seconds": seconds}
        wanted = {key: value for key, value in given.items() if value is not None}
        return checked(Scenario, self.model_dump() | wanted, source="scenario")


class _File(Table):
    description: str
    scenario: Scenario


def load_scenario(name: str) -> Scenario:
    """The scenario of a name or path. Raises RecipeError for one that is missing or wrong."""
    path = resources.find(SHELF, name)
    return checked(_File, resources.read_toml(path), source=str(path)).scenario
