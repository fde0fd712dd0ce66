"""Artifacts measured side by side: one run, calls in turn, so that ratios hold on a noisy machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from .. import devices
from ..errors import RecipeError
from ..export.sessions import (
    PROVIDERS,
    BareFile,
    Bound,
    NullSession,
    Timed,
    artifact_session,
    beside_others,
    images_for,
    provider_of,
    size_of,
)
from ..progress import bar
from ..recipe import CallSize, Count, Int, Seconds, Table, Threads, checked, read
from ..runtime import ON_GPU, Artifact, sums_saturate, time_sessions, wilson
from .executed import compute_type, executed, multiply_adds, placement
from .memory import footprint
from .timing import Int8Gemm, ratio_interval, statistics

FOLDER = "benches/scenarios"
NotNegative = Annotated[Int, Field(ge=0)]


class Scenario(Table):
    """A way to load artifacts with work."""

    batch: Annotated[tuple[CallSize, ...], Field(min_length=1)] = (1, 32)
    """Images of a call, each size timed on its own."""
    threads: Annotated[tuple[Threads, ...], Field(min_length=1)] = (1,)
    """Threads of a session, 0 for as many as the runtime likes; each count is a run of its own."""
    min_seconds: Seconds = 2.0
    """Least time in seconds of each batch size and thread count, all artifacts together."""
    min_runs: Count = 20
    """Least number of calls of each artifact."""
    warmup: NotNegative = 5
    """Calls of each artifact before, which are not counted."""
    metric: Literal["p50_ms", "p90_ms", "p99_ms", "images_per_second"] = "p50_ms"
    """The figure that the scenario is about: a percentile of latency in milliseconds, or throughput."""

    def changed(
        self, batch: Sequence[int] | None = None, threads: Sequence[int] | None = None, seconds: float | None = None
    ) -> Scenario:
        """The same with other settings, where they are given. Raises RecipeError for one that cannot be."""
        given: dict[str, Any] = {"batch": batch, "threads": threads, "min_seconds": seconds}
        wanted = {key: value for key, value in given.items() if value is not None}
        return checked(Scenario, self.model_dump() | wanted, source="scenario")


class _File(Table):
    """A file of a scenario."""

    description: str
    """One line that says what it stands for."""
    scenario: Scenario


def load_scenario(name: str) -> Scenario:
    """The scenario of a name or path. Raises RecipeError for one that is missing or wrong."""
    table, found = read(FOLDER, name)
    return checked(_File, table, source=str(found)).scenario


HARNESS = "(harness)"
UNKNOWN = dict.fromkeys(("clean_accuracy", "worst_case", "worst_case_ci95", "suite_n"))
Record = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """An artifact, or a bare file, on a provider (full name); `label` tells it from the others."""

    label: str
    artifact: Timed
    provider: str

    @property
    def bits(self) -> Any:
        """32 for a float network, else what its manifest says; None for a bare file."""
        return None if isinstance(self.artifact, BareFile) else self.artifact.manifest["bits"]


@dataclass(frozen=True)
class Load:
    """What a session had to do: threads, images a call; gemm: the int8 multiply-adds a second measured beside it."""

    threads: int
    batch: int
    gemm: float | None = None


def bench(
    artifacts: Sequence[Timed],
    scenario: Scenario | None = None,
    *,
    providers: Sequence[str] = (),
    batches: Sequence[int] | None = None,
    threads: int | Sequence[int] | None = None,
    seconds: float | None = None,
) -> Record:
    """`side_by_side` of artifacts and bare files, each on every provider; other arguments change the scenario.

    providers: as `sessions.provider_of` takes them; none for each artifact's own.
    """
    candidates = []
    for name, artifact in zip(unique_names(artifacts), artifacts, strict=True):
        for provider in providers or (_own_provider(artifact),):
            label = name if len(providers) < 2 else f"{name} ({provider})"
            candidates.append(Candidate(label, artifact, provider_of(provider)))
    counts = (threads,) if isinstance(threads, int) else threads
    return side_by_side(candidates, (scenario or Scenario()).changed(batches, counts, seconds))


def side_by_side(candidates: Sequence[Candidate], scenario: Scenario) -> Record:
    """Latency, throughput, memory, size and robustness of each candidate, side by side.

    Ratios are of medians against the reference: the first float artifact (bits 32), on a GPU the first that computes
    in float16 if there is one, else, and beside bare files, the first of all; above 1 is faster. Returns JSON:

    - reference, scenario, versions, hardware; harness_us: what timing itself takes, by a session that returns at once.
    - artifacts: by label what does not depend on the load: provider, nodes that ran by provider and kind, type
      of the convolutions' input, multiply-adds an image, memory, load time, size, accuracies of the suite.
    - results: one record for each candidate, thread count and batch size. int8_gemm: multiply-adds a second of
      onnxruntime's own large integer product just then, on a CPU; int8_gemm_share: a quantised network's, of that.
    - hardware.sums_saturate: whether 8-bit sums could saturate there, so that sessions were opened against it.

    Raises ArtifactError if a session does not run where it should, or a node ran elsewhere; RecipeError for two
    candidates of one label.
    """
    labels = [one.label for one in candidates]
    if len(set(labels)) < len(labels):
        raise RecipeError(f"expected every artifact and provider once, got {', '.join(labels)}; leave out one")
    with bar("bench", len(candidates) + len(scenario.threads) * len(scenario.batch), "steps") as moving:
        facts = {}
        for one in candidates:
            facts[one.label] = _facts(one, scenario)
            moving.advance()
        reference = _reference(candidates, facts)
        overheads, results = [], []
        for threads in scenario.threads:
            sessions = {one.label: _session(one, threads) for one in candidates}
            for batch in scenario.batch:
                times, gemm = _times(candidates, sessions, scenario, Load(threads, batch))
                overheads.append(float(np.median(times.pop(HARNESS))) * 1e3)
                results += _records(candidates, facts, times, Load(threads, batch, gemm), reference)
                moving.advance()
    return {
        "reference": reference,
        "scenario": scenario.model_dump(mode="json"),
        "harness_us": max(overheads),
        "artifacts": facts,
        "results": results,
        "versions": devices.versions(),
        "hardware": {"cpu": devices.processor(), "cores": os.cpu_count(), "sums_saturate": sums_saturate()},
    }


def unique_names(artifacts: Sequence[Timed]) -> list[str]:
    """The artifacts' names, or their paths where two share a name."""
    names = [artifact.name for artifact in artifacts]
    return [a.name if names.count(a.name) == 1 else str(a.path) for a in artifacts]


def suite_accuracy(artifact: Artifact) -> Record:
    """Accuracies of the network before export on the suite: clean, and worst case of all sets with its interval."""
    suite = artifact.suite
    right = {name: suite[f"label.{name}"] == suite["y"] for name in artifact.sets}
    worst = np.all(list(right.values()), axis=0)
    low, high = wilson(int(worst.sum()), len(worst))
    shares = {"clean_accuracy": float(right["clean"].mean()), "worst_case": float(worst.mean())}
    return {**shares, "worst_case_ci95": [low, high], "suite_n": len(worst)}


def _own_provider(one: Timed) -> str:
    return PROVIDERS["cpu"] if isinstance(one, BareFile) else str(one.manifest["target"]["provider"])


def _stated(one: Timed) -> Record:
    """What a manifest and a suite say; of a bare file nothing is known."""
    if isinstance(one, BareFile):
        return {"target": None, "threat": None, "size_bytes": one.size_bytes, **UNKNOWN}
    return {
        "target": one.manifest["target"]["name"],
        "threat": one.manifest["threat"],
        "size_bytes": size_of(one),
        **suite_accuracy(one),
    }


def _facts(one: Candidate, scenario: Scenario) -> Record:
    nodes = executed(one.artifact, one.provider)
    return {
        "provider": one.provider,
        "bits": one.bits,
        **_stated(one.artifact),
        "executed": placement(nodes),
        "compute_type": compute_type(nodes),
        "multiply_adds": multiply_adds(one.artifact),
        **footprint(one.artifact, one.provider, threads=scenario.threads[0], batch=scenario.batch[0]),
    }


def _reference(candidates: Sequence[Candidate], facts: dict[str, Record]) -> str:
    """The float artifact; beside bare files, of which that is not known, the first."""
    if any(isinstance(one.artifact, BareFile) for one in candidates):
        return candidates[0].label
    floats = [one for one in candidates if one.bits == 32]
    fast = [one for one in floats if one.provider in ON_GPU and facts[one.label]["compute_type"] == "float16"]
    return (fast or floats or candidates)[0].label


def _session(one: Candidate, threads: int) -> Any:
    session = artifact_session(one.artifact, one.provider, threads)
    return session if threads == 1 or one.provider in ON_GPU else beside_others(session, one.artifact)


def _times(
    candidates: Sequence[Candidate], sessions: dict[str, Any], scenario: Scenario, load: Load
) -> tuple[dict[str, list[float]], float | None]:
    """Milliseconds by label and of the harness, and `int8_gemm` around them, None where all run on a GPU."""
    bound = {one.label: Bound(sessions[one.label], images_for(one.artifact, load.batch)) for one in candidates}
    timed = {HARNESS: NullSession(), **bound}
    gemm = None if all(one.provider in ON_GPU for one in candidates) else Int8Gemm(load.threads)
    if gemm:
        gemm.measure()
    times = time_sessions(
        timed,
        np.empty(0),
        min_seconds=scenario.min_seconds,
        min_runs=scenario.min_runs,
        warmup=scenario.warmup,
    )
    if gemm:
        gemm.measure()
    return times, gemm.macs_per_second if gemm else None


def _records(
    candidates: Sequence[Candidate], facts: dict[str, Record], times: dict[str, list[float]], load: Load, reference: str
) -> list[Record]:
    return [_record(one, facts[one.label], times[one.label], times[reference], load) for one in candidates]


def _record(one: Candidate, facts: Record, mine: Sequence[float], reference: Sequence[float], load: Load) -> Record:
    figures = statistics(mine, load.batch)
    share = None
    if load.gemm and one.provider not in ON_GPU and one.bits not in (None, 32):
        share = facts["multiply_adds"] * figures["images_per_second"] / load.gemm
    return {
        "name": one.label,
        "bits": one.bits,
        "threads": load.threads,
        "batch": load.batch,
        **figures,
        "size_bytes": facts["size_bytes"],
        "speedup": float(np.median(reference) / np.median(mine)),
        "speedup_ci95": list(ratio_interval(reference, mine)),
        "int8_gemm": load.gemm,
        "int8_gemm_share": share,
    }
