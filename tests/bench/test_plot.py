"""The figure and the tables of a bench."""

import subprocess
import sys

import pytest
from rich.console import Console

from qrobust.bench.plot import plot
from qrobust.errors import RunError
from qrobust.tables import artifact_table, timing_table

FACTS = {
    "provider": "CPUExecutionProvider", "threat": {"norm": "linf", "eps": 8 / 255}, "size_bytes": 999_000,
    "worst_case": 0.5, "worst_case_ci95": [0.4, 0.6], "clean_accuracy": 0.9, "suite_n": 96, "memory_bytes": None,
    "load_ms": 3.0, "compute_type": None,
    "executed": {"CPUExecutionProvider": {"Conv": 9, "Clip": 4, "Add": 3, "Gemm": 1}},
}  # fmt: skip
FLOAT = {"name": "net-qm-32", "p50_ms": 2.0, "speedup": 1.0, "int8_gemm_share": None}
QUANTISED = {"name": "net-qm-4 [x]", "p50_ms": 1.0, "speedup": 2.0, "int8_gemm_share": 0.25}
SHARED = {"threads": 1, "p90_ms": 3.0, "p99_ms": 4.0, "images_per_second": 500.0, "speedup_ci95": [0.9, 1.1]}


def _result():
    """Of two artifacts at two batch sizes, as `bench` gives it."""
    results = [{**row, **SHARED, "batch": batch} for row in (FLOAT, QUANTISED) for batch in (32, 1)]
    told = {"reference": "net-qm-32", "harness_us": 0.7, "scenario": {"metric": "p90_ms"}, "hardware": {"cpu": "a CPU"}}
    return {**told, "artifacts": {row["name"]: FACTS for row in (FLOAT, QUANTISED)}, "results": results}


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_figure_is_written_the_same_every_time(suffix, magic, tmp_path):
    paths = [tmp_path / "deep" / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        plot(_result(), path)
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(magic)
    assert first == second


def test_every_artifact_and_what_it_means_is_in_the_figure(tmp_path, monkeypatch):
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # text stays text
    plot(_result(), tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text()
    for part in ("net-qm-32", "net-qm-4 [x]", "batch 1, 1 thread", "eps 8/255", "96 images", "only overestimate"):
        assert part in text


@pytest.mark.parametrize("name", ["figure.jpg", "figure"])
def test_another_kind_of_file_is_refused(name, tmp_path):
    with pytest.raises(RunError, match=r"expected a file that ends in .png or .svg for --plot, got "):
        plot(_result(), tmp_path / name)


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    result = _result()
    old = next(iter(result["artifacts"]))
    result["artifacts"]["$\\x$ $\\frac{$"] = result["artifacts"].pop(old)
    for row in result["results"]:
        row["name"] = "$\\x$ $\\frac{$" if row["name"] == old else row["name"]
    plot(result, tmp_path / "f.svg")
    assert (tmp_path / "f.svg").stat().st_size > 1000


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="expected a writable place, cannot write "):
        plot(_result(), tmp_path / "file" / "f.png")


def test_matplotlib_is_not_imported_before_it_is_needed():
    code = "import sys, qrobust.bench.plot, qrobust.bench; print({'matplotlib', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _printed(*tables):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(*tables)
    return captured.get()


def test_the_tables_say_it_all():
    text = _printed(timing_table(_result()), artifact_table(_result()))
    for part in ("p90 ms *", "2.00 ×", "0.90–1.10", "25 %", "net-qm-4 [x]", "0.7 µs", "50.0", "only overestimate"):
        assert part in text, part
    assert text.count("net-qm-4 [x]") == 3  # no markup
    assert "9 Conv, 4 Clip, 3 Add, 1 others" in text
