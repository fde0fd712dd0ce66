"""From times in turns to figures: percentiles, ratios with their intervals, and onnxruntime's int8 product."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..export.sessions import PROVIDERS, Bound
from ..runtime import load_session, time_sessions

TEXT = """<ir_version: 10, opset_import: ["": 21]>
gemm (uint8[rows, {size}] x) => (int32[rows, {size}] y) {{
    shape = Constant <value = int64[2] {{{size}, {size}}}> ()
    weight = ConstantOfShape <value = int8[1] {{3}}> (shape)
    y = MatMulInteger (x, weight)
}}"""


def write_gemm(folder: str | Path, size: int) -> Path:
    """A file in `folder` that multiplies uint8 (rows, size) with constant int8 (size, size); returns its path.

    The weight is made when the file is loaded, so onnxruntime packs it in advance as it does a network's.
    """
    path = Path(folder) / "gemm.onnx"
    path.write_bytes(onnx.parser.parse_model(TEXT.format(size=size)).SerializeToString())
    return path


RESAMPLES = 500
GEMM = 512  # rows, columns and depth: the fastest of 256 to 2048 where it was tried


def statistics(times: Sequence[float], batch: int) -> dict[str, Any]:
    """Percentiles of latencies in ms, the throughput of their median, and how many there are."""
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    rate = batch / p50 * 1e3
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "images_per_second": rate, "runs": len(times)}


def ratio_interval(first: Sequence[float], second: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of median(first) / median(second), whose times were taken in turns.

    Rounds are drawn again in pairs and in blocks of √n in a row: noise comes in bursts, and single rounds
    would pretend to know more than they do (moving blocks bootstrap, Künsch 1989).
    """
    pairs = np.array([first, second])
    rounds = pairs.shape[1]
    length = math.isqrt(rounds)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        starts = rng.integers(0, rounds - length + 1, rounds // length)
        medians = np.median(pairs[:, (starts[:, None] + np.arange(length)).ravel()], axis=1)
        drawn.append(medians[0] / medians[1])
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


class Int8Gemm:
    """The multiply-adds a second that onnxruntime's own large integer matrix product reaches here, now.

    A yardstick, not the processor's peak: other libraries get past it.
    """

    def __init__(self, threads: int) -> None:

        with tempfile.TemporaryDirectory() as folder:
            session = load_session(write_gemm(folder, GEMM), PROVIDERS["cpu"], threads, {"x64quantprecision": 1})
        x = np.random.default_rng(0).integers(0, 256, (GEMM, GEMM), dtype=np.uint8)
        self._session, self._x, self.times = Bound(session, x), x, list[float]()

    def measure(self) -> None:
        """Add runs to `times`; called before and after what is compared with it."""
        self.times += time_sessions({"gemm": self._session}, self._x, min_seconds=0.2, min_runs=20)["gemm"]

    @property
    def macs_per_second(self) -> float:
        """By the median of all runs."""
        return float(GEMM**3 / np.median(self.times) * 1e3)
