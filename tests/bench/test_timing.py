"""Figures from times, with intervals that keep their promise."""

import numpy as np
import pytest

from qrobust.bench.timing import GEMM, Int8Gemm, ratio_interval, statistics, write_gemm


def test_statistics_of_known_times():
    found = statistics([*range(1, 102)], batch=51)
    assert (found["p50_ms"], found["p90_ms"], found["p99_ms"], found["runs"]) == (51, 91, 100, 101)
    assert found["images_per_second"] == 1000


def test_equal_times_have_no_spread():
    assert ratio_interval([2.0] * 50, [1.0] * 50) == (2.0, 2.0)


def _noisy(rng, rounds, ratio):
    """Pairs of which one slows down for ten rounds at a time, as on a machine with other work."""
    bursts = np.repeat(rng.lognormal(0, 0.1, -(-rounds // 10)), 10)[:rounds]
    return ratio * bursts, rng.lognormal(0, 0.02, rounds)


def test_the_interval_holds_the_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held, widths = 0, []
    for _ in range(60):
        low, high = ratio_interval(*_noisy(rng, 900, 2.0))
        held += low <= 2.0 <= high
        widths.append(high - low)
    assert held >= 50  # 57 of 60 are expected; single rounds drawn again hold it 24 times
    assert np.median(widths) < 0.2


def test_the_interval_is_the_same_every_time():
    pair = _noisy(np.random.default_rng(1), 100, 3.0)
    assert ratio_interval(*pair) == ratio_interval(*pair)
    assert ratio_interval(*pair) != ratio_interval(*pair, seed=1)


def test_one_round_is_enough_to_run():
    assert ratio_interval([3.0], [2.0]) == (1.5, 1.5)


def test_the_int8_product_has_a_speed():
    gemm = Int8Gemm(1)
    gemm.measure()
    assert len(gemm.times) >= 20
    assert gemm.macs_per_second == pytest.approx(GEMM**3 / np.median(gemm.times) * 1e3)
    assert gemm.macs_per_second > 1e9


def test_the_product_is_right(tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(write_gemm(tmp_path, 32)), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).integers(0, 256, (5, 32), dtype=np.uint8)
    assert np.array_equal(session.run(None, {"x": x})[0], x.astype(np.int32) @ np.full((32, 32), 3, np.int32))
