"""Deployment targets: where a network must run, and what must hold there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .. import resources, runtime
from ..errors import RecipeError
from ..recipe import Name, Table, Threads, checked, read

Share = Annotated[float, Field(ge=0, le=runtime.MOST_TOLERATED)]


class Session(Table):
    """How the runtime opens the file, by onnxruntime's names of its options."""

    graph_optimization_level: Literal["disable", "basic", "extended", "all"]
    """How far onnxruntime rewrites the graph when it opens the file."""
    intra_op_num_threads: Threads
    """Threads of a session; 0: as many as the runtime likes."""
    x64quantprecision: Annotated[int, Field(ge=0, le=1)]
    """1 keeps sums of 8-bit products exact on processors where they could saturate, which are asked when a session
    opens; 0 never: onnxruntime breaks files with INT8 activations by it.
    """


class Limits(Table):
    """What a check of the artifact tolerates; shares of images, differences of accuracies as shares."""

    label_flips: Share
    """Share of suite images whose label differs from torch's."""
    accuracy_drop: Share
    """Clean accuracy lost, against torch on the same images."""
    robust_drop: Share
    """Accuracy lost under each stored attack, against torch on the same images."""
    square_gap: Share
    """How far below the replayed worst case the accuracy under Square may lie."""
    logit_change: Annotated[float, Field(gt=0)] | None = None
    """How far the logits of the median clean image moved, as a share of their length; left out: not asked."""
    latency_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Median latency of one image in milliseconds, on the machine that checks; left out: not asked."""
    size_bytes: Annotated[int, Field(gt=0)] | None = None
    """Size of the file that runs in bytes; left out: not asked."""


class Statistics(Table):
    """How sure a check must be of a drop larger than tolerated: see [checking](../docs/checking.md)."""

    alpha: Annotated[float, Field(ge=runtime.LEAST_ALPHA, lt=0.5)]
    """Chance that any test of a check fails where all drops are tolerated."""
    power: Annotated[float, Field(ge=0.5, le=1 - 1e-6)]
    """Chance that a test of a set whose accuracy dropped by `detected_drop` fails; a smaller suite is refused."""
    detected_drop: Annotated[float, Field(gt=0, le=runtime.MOST_DETECTED)]
    """The drop of accuracy that is caught with that power; above every tolerated drop."""


class Square(Table):
    """The gradient-free attack of a check."""

    queries: Annotated[int, Field(ge=runtime.LEAST_QUERIES, le=runtime.MOST_QUERIES)]
    """Queries an image."""
    n: Annotated[int, Field(ge=runtime.LEAST_IMAGES)]
    """Images of the suite that are attacked."""


class Target(Table):
    """One deployment target, as a TOML file states it over the defaults of all, `export/_defaults.toml`."""

    name: Name
    """Name of the target; left out: that of the file."""
    description: str
    """One line, for `qrobust targets`."""
    provider: str
    """An execution provider of onnxruntime, `"openvino"`, `"litert-xnnpack"` or `"litert-reference"`; never another."""
    format: Literal["integer", "compact", "float", "float16", "symmetric", "qonnx"]
    """What the graph is made of, below."""
    opset: Annotated[int, Field(ge=20, le=25)]
    """The highest that may be asked of the runtime: INT4 takes 21, INT2 25; with a lower one weights lie wider."""
    storage: Literal["cast", "direct", "bytes"]
    """`"cast"`: weights at the least width that holds them, a Cast to INT8 behind, which onnxruntime folds at load
    (1.23 or later; INT2 1.24); `"direct"`: no Cast but INT2's; `"bytes"`: one byte a weight.
    """
    linear: Literal["matmulinteger", "qdq"]
    """A quantised linear layer of tokens in the format integer: `"matmulinteger"`: a product of integers, of which
    onnxruntime's CPU provider makes one layer with its scale and bias, or nothing is written; `"qdq"`: a product
    between Quantize and Dequantize, as other runtimes fuse it.
    """
    names: Literal["paths", "short"]
    """`"paths"`: tensors carry the layer's module path; `"short"`: the fewest bytes."""
    required_ops: tuple[str, ...]
    """One of each for every quantised convolution in the optimised graph, or nothing is written."""
    forbidden_ops: tuple[str, ...]
    """None of these in the optimised graph, or nothing is written."""
    session: Session
    limits: Limits
    statistics: Statistics
    square: Square

    @property
    def executable(self) -> bool:
        """Whether onnxruntime can execute the file: another tool reads QONNX."""
        return self.format != "qonnx"

    @model_validator(mode="after")
    def _opens_what_it_writes(self) -> Target:
        if self.format == "symmetric" and self.session.x64quantprecision:
            raise ValueError(
                "session: expected x64quantprecision = 0 for the format symmetric, whose activations are INT8, got 1; "
                "set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _detects_more_than_it_tolerates(self) -> Target:
        most = max(self.limits.accuracy_drop, self.limits.robust_drop)
        if self.statistics.detected_drop <= most + 1e-6:  # closer ones no artifact may hold
            raise ValueError(
                f"statistics: expected a detected_drop above the tolerated {most}, got "
                f"{self.statistics.detected_drop}; raise it, or tolerate less"
            )
        return self


def load_target(name: str) -> Target:
    """The target of a name or path. Raises RecipeError for one that is missing or wrong."""
    table, found = read("export", name)
    return checked(Target, {"name": resources.name_of("export", found), **table}, source=str(found))


def check(
    artifact: runtime.Artifact | str | Path,
    *,
    baseline: str | Path | None = None,
    queries: int | None = None,
    seed: int = 0,
    **limits: float | None,
) -> runtime.Report:
    """Replay an artifact's suite on its runtime, attack the session with Square, and judge the limits; needs no torch.

    artifact: its folder, or the artifact. baseline: a file of `qrobust check --update-baseline`, whose limits apply.
    queries: of Square an image. limits: in the place of the artifact's own, as `robust_drop=0.01, latency_ms=5`: shares
    of images, differences of accuracies, milliseconds, bytes; None for none, where there may be none. The report's
    `passed` says whether all held, `verdicts` which did not, why, and what to do. Raises ArtifactError for an artifact
    that is damaged or that its session does not run, RecipeError for another limit.

    >>> import qrobust
    >>> qrobust.check("artifact", robust_drop=0.01).passed  # one that `export_artifact` wrote
    True

    Replayed examples can only overestimate robustness: `qrobust.attack` attacks the file itself.
    """
    loaded = artifact if isinstance(artifact, runtime.Artifact) else runtime.Artifact.load(artifact)
    if limits:
        stated = loaded.manifest
        known = {name: stated["limits"].get(name) for name in Limits.model_fields}
        within = checked(Limits, {**known, **limits}, source="check").model_dump()
        most, detected = max(within["accuracy_drop"], within["robust_drop"]), stated["statistics"]["detected_drop"]
        if detected <= most + 1e-6:
            raise RecipeError(
                f"check: expected accuracy_drop and robust_drop below {detected}, which the artifact's suite detects, "
                f"got {most}; tolerate less"
            )
        loaded = runtime.Artifact(loaded.path, {**stated, "limits": within}, loaded.suite, loaded.model)
    place = None if baseline is None else Path(baseline)
    return runtime.check(loaded, baseline=place, queries=queries, seed=seed)
