"""What a result says, and what ratios are against."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from qrobust.bench import measure
from qrobust.bench.measure import Candidate, Scenario, bench, side_by_side, suite_accuracy, unique_names
from qrobust.errors import RecipeError
from qrobust.export.sessions import PROVIDERS

from ..conftest import evidence
from .conftest import written

CPU, CUDA = PROVIDERS["cpu"], PROVIDERS["cuda"]
QUICK = Scenario(batch=(1, 3), threads=(1, 2), min_seconds=0.02, min_runs=5, warmup=1)


@pytest.fixture(scope="module")
def result(artifacts):
    return bench([artifacts[4], artifacts[32]], QUICK)


def test_every_load_has_its_figures(result):
    seen = [(row["name"], row["threads"], row["batch"]) for row in result["results"]]
    names = ("tiny-qm-4", "tiny-qm-32")
    assert seen == [(name, threads, batch) for threads in (1, 2) for batch in (1, 3) for name in names]
    for row in result["results"]:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["runs"] >= 5
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["p50_ms"] * 1e3)
        low, high = row["speedup_ci95"]
        assert 0 < low <= high
    assert json.loads(json.dumps(result)) == result


def test_ratios_are_against_the_float_artifact(result):
    assert result["reference"] == "tiny-qm-32"
    by_load = {(row["name"], row["threads"], row["batch"]): row for row in result["results"]}
    for (name, *load), row in by_load.items():
        assert row["speedup"] == pytest.approx(by_load["tiny-qm-32", *load]["p50_ms"] / row["p50_ms"])
        assert name != "tiny-qm-32" or row["speedup_ci95"] == [1, 1]


def test_the_share_of_the_int8_product_is_of_integer_networks_alone(result):
    for row in result["results"]:
        if row["bits"] == 32:
            assert row["int8_gemm_share"] is None
            continue
        macs = result["artifacts"][row["name"]]["multiply_adds"]
        assert row["int8_gemm_share"] == pytest.approx(macs * row["images_per_second"] / row["int8_gemm"])
        assert 0 < row["int8_gemm_share"] < 1


def test_what_does_not_depend_on_the_load(result, artifacts):
    facts = result["artifacts"]["tiny-qm-4"]
    assert (facts["provider"], facts["bits"], facts["target"]) == (CPU, 4, "ort-cpu")
    assert facts["size_bytes"] == (artifacts[4].path / "model.onnx").stat().st_size
    assert facts["executed"][CPU]["QLinearConv"] == 9
    assert facts["load_ms"] > 0


def test_the_harness_takes_microseconds(result):
    assert 0 < result["harness_us"] < 100


def test_the_worst_case_is_counted_image_by_image():
    y = np.arange(4)
    right = {"clean": [1, 1, 1, 0], "fgsm": [0, 1, 1, 0], "square": [1, 0, 1, 0]}
    labels = {f"label.{name}": np.where(hits, y, 9) for name, hits in right.items()}
    found = suite_accuracy(SimpleNamespace(suite={"y": y, **labels}, sets=tuple(right)))
    assert (found["clean_accuracy"], found["worst_case"], found["suite_n"]) == (0.75, 0.25, 4)
    assert found["worst_case_ci95"][0] < 0.25 < found["worst_case_ci95"][1]


@pytest.mark.slow
def test_several_providers_race_in_one_run(artifacts):
    evidence("openvino")
    result = bench([artifacts[8]], QUICK.changed(batch=[1], threads=[1]), providers=("cpu", "openvino"))
    assert [row["name"] for row in result["results"]] == ["tiny-qm-8 (cpu)", "tiny-qm-8 (openvino)"]
    assert result["reference"] == "tiny-qm-8 (cpu)"


def test_two_of_one_name_are_told_apart_by_their_paths(artifacts, tmp_path):
    same = [written(tmp_path / folder, 4, name="same") for folder in ("a", "b")]
    assert unique_names([*same, artifacts[4]]) == [str(tmp_path / "a"), str(tmp_path / "b"), "tiny-qm-4"]


def test_nobody_races_twice(artifacts):
    for providers, same in (("cpu", "cpu"), 1), (("cpu",), 2):
        with pytest.raises(RecipeError, match=r"expected every artifact and provider once, got .*; leave out one"):
            bench([artifacts[4]] * same, QUICK, providers=providers)


REFERENCES = {
    "a float16 one": (CUDA, ("uint8", "float", "float16"), "c"),
    "else the first float one": (CUDA, ("uint8", "float", "float"), "b"),
    "not on a CPU": (CPU, ("uint8", "float", "float16"), "b"),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_on_a_gpu_the_reference_computes_in_float16(name):
    provider, types, reference = REFERENCES[name]
    bits = {"a": 4, "b": 32, "c": 32}
    candidates = [Candidate(key, SimpleNamespace(manifest={"bits": width}), provider) for key, width in bits.items()]
    facts = {label: {"compute_type": kind} for label, kind in zip(bits, types, strict=True)}
    assert measure._reference(candidates, facts) == reference


def test_without_a_float_one_the_first_is_the_reference():
    candidates = [Candidate(key, SimpleNamespace(manifest={"bits": 4}), CPU) for key in "xy"]
    assert measure._reference(candidates, {}) == "x"


def test_a_race_reports_a_fallback_before_it_times(artifacts, monkeypatch):
    from qrobust.runtime import ArtifactError

    def refuse(*_):
        raise ArtifactError("expected all nodes on X")

    monkeypatch.setattr(measure, "executed", refuse)
    monkeypatch.setattr(measure, "time_sessions", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(ArtifactError, match="expected all nodes"):
        side_by_side([Candidate("a", artifacts[4], CPU)], QUICK)
