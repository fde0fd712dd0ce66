"""What is measured is saved, not measured again, and drawn again from the file alone."""

import json
from dataclasses import replace

import pytest

from qrobust.analysis import draw, save, session
from qrobust.analysis.session import EXPERIMENTS, analyze
from qrobust.errors import DataError, ModelError, RecipeError, RunError

from .conftest import SETTINGS, train_run

MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml"}


@pytest.fixture
def undrawn(monkeypatch):
    """Data alone."""
    monkeypatch.setattr(session, "save", lambda data, path: None)


def counted(monkeypatch, name, stop=None):
    """Labels of the cases that an experiment measures; at a number of them, Ctrl-C."""
    seen, original = [], EXPERIMENTS[name]

    def measure(case):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(case.label)
        return original.measure(case)

    monkeypatch.setitem(EXPERIMENTS, name, replace(original, measure=measure))
    return seen


def test_every_figure_is_data_that_json_holds_and_two_pictures(outcome):
    results, out = outcome
    for name, data in results.items():
        assert json.loads((out / f"{name}.json").read_text()) == data
        assert (data["figure"], data["n"], data["seed"]) == (name, 30, 3)
        assert data["settings"]["n"] == 30
        assert [case["label"] for case in data["cases"]] == (["QM-32"] if name == "filtered" else ["QM-32", "QM-4"])
        for suffix, magic in MAGIC.items():
            assert (out / f"{name}{suffix}").read_bytes().startswith(magic)


@pytest.mark.slow
def test_a_saved_file_is_drawn_again_to_the_same_bytes(outcome, tmp_path):
    _, out = outcome
    for name in ("low-pass", "perturbations"):
        save(json.loads((out / f"{name}.json").read_text()), tmp_path / f"{name}.json")
        for suffix in MAGIC:
            assert (tmp_path / f"{name}{suffix}").read_bytes() == (out / f"{name}{suffix}").read_bytes(), name


@pytest.mark.usefixtures("undrawn")
def test_what_is_done_is_not_done_again(run, other_run, tmp_path, monkeypatch):
    seen = counted(monkeypatch, "heat-map")
    few = replace(SETTINGS, n=5)
    first = analyze([run], ["heat-map"], few, tmp_path)
    assert seen == ["QM-32", "QM-4"]
    assert analyze([run], ["heat-map"], few, tmp_path) == first
    analyze([run], ["heat-map"], replace(few, attacks=("fgsm",), bandwidths=(2,)), tmp_path)  # not of its settings
    assert seen == ["QM-32", "QM-4"]
    analyze([run, other_run], ["heat-map"], few, tmp_path)  # one of them under another name
    assert seen[2:] == ["other"]
    del seen[:]
    for settings in (replace(few, seed=4), replace(few, n=6), replace(few, norm=0.1)):
        (tmp_path / "heat-map.json").write_text(json.dumps(first["heat-map"]))
        analyze([run / "qm-4"], ["heat-map"], settings, tmp_path)
    assert seen == ["QM-4"] * 3
    (tmp_path / "heat-map.json").write_text(json.dumps({"cases": [{"label": "QM-4"}, 5]}))  # not one of ours
    analyze([run / "qm-4"], ["heat-map"], few, tmp_path)
    assert seen == ["QM-4"] * 4


@pytest.mark.usefixtures("undrawn")
def test_ctrl_c_keeps_what_was_measured(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        counted(patch, "kernels", stop=1)
        with pytest.raises(KeyboardInterrupt):
            analyze([run], ["kernels"], SETTINGS, tmp_path)
    seen = counted(monkeypatch, "kernels")
    assert len(analyze([run], ["kernels"], SETTINGS, tmp_path)["kernels"]["cases"]) == 2
    assert seen == ["QM-4"]


@pytest.mark.usefixtures("undrawn")
def test_without_names_all_are_measured_that_can_be(other_run, tmp_path, capfd):
    few = replace(SETTINGS, n=3)
    found = analyze([other_run], [], few, tmp_path)
    errors = capfd.readouterr().err
    left = {"masks", "similarity", "similarity-to-float", "similarity-to-artifact", "ablation"}
    assert {line.split(":")[0] for line in errors.splitlines() if "left out" in line} == left
    assert not left & set(found)
    assert "heat-map" in found


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("masks", RunError, "expected a network behind FAT's masks, got none"),
        ("similarity-to-float", RunError, "expected a quantised network, got float ones alone"),
        ("similarity-to-artifact", RunError, "expected an artifact in .*qm-32, got none"),
        ("ablation", RunError, "expected eval.json in .*qm-32, got none"),
    ],
)
def test_a_missing_stage_is_told_before_anything_begins(other_run, tmp_path, name, error, text):
    with pytest.raises(error, match=text):
        analyze([other_run], ["heat-map", name], SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (replace(SETTINGS, n=161), DataError, r"expected -n in \[1, 160\]"),
        (replace(SETTINGS, bandwidths=(13,)), DataError, r"expected -k in \[1, 12\]"),
        (replace(SETTINGS, attacks=("pdg-2",)), RecipeError, "expected an attack, got 'pdg-2'"),
        (replace(SETTINGS, norm=-1.0), RecipeError, "expected --norm above 0, got -1"),
    ],
)
def test_wrong_settings_are_told_before_anything_begins(run, tmp_path, settings, error, text):
    with pytest.raises(error, match=text):
        analyze([run], [], settings, tmp_path)
    assert not list(tmp_path.iterdir())


def test_fewer_images_than_similarity_takes(run, tmp_path):
    with pytest.raises(DataError, match="expected -n of at least 4, got 3"):
        analyze([run], ["similarity"], replace(SETTINGS, n=3), tmp_path)


@pytest.mark.slow
def test_images_that_are_not_square_have_what_needs_no_square(tmp_path, run):
    folder = train_run(tmp_path / "wide", ("train", {"epochs": 1, "method": "natural"}), shape=(1, 8, 12))
    few = replace(SETTINGS, n=4, bandwidths=())
    for name in ("low-pass", "aggressiveness", "filtered"):
        with pytest.raises(DataError, match="expected square images, got 8 × 12; crop them"):
            analyze([folder], [name], few, tmp_path / "out")
    found = analyze([folder], ["heat-map", "mean-spectrum", "perturbations", "kernels"], few, tmp_path / "out")
    error = found["heat-map"]["cases"][0]["result"]["error"]
    assert (len(error), len(error[0])) == (8, 12)
    with pytest.raises(DataError, match=r"expected images of one shape, got \(3, 12, 12\) and \(1, 8, 12\)"):
        analyze([run, folder], ["kernels"], few, tmp_path / "out")


def test_what_is_no_data_of_a_figure(outcome):
    with pytest.raises(RunError, match="expected the data of a figure, got something else"):
        draw({"n": 3})
    data = json.loads(json.dumps(outcome[0]["heat-map"]))
    with pytest.raises(RecipeError, match="did you mean 'heat-map'"):
        draw(data | {"figure": "heat-maps"})
    with pytest.raises(RecipeError, match=r"expected a figure, got \['heat-map'\]"):
        draw(data | {"figure": ["heat-map"]})
    del data["cases"][0]["result"]["error"]
    with pytest.raises(RunError, match="expected whole data of heat-map, got some that lacks or breaks 'error'"):
        draw(data)


def test_results_make_an_ablation_alone(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"n": 1, "clean": {}, "attacks": {}}))
    with pytest.raises(RunError, match="expected run folders for these figures"):
        analyze([tmp_path / "a.json"], ["kernels"], SETTINGS, tmp_path)
    with pytest.raises(RunError, match="expected evaluations of several networks, got one"):
        analyze([tmp_path / "a.json"], ["ablation"], SETTINGS, tmp_path)


def test_a_network_without_convolutions(run, monkeypatch, tmp_path):
    from torch import nn

    from qrobust.runs.run import Run

    monkeypatch.setattr(Run, "network", lambda self, bits: nn.Flatten())
    with pytest.raises(ModelError, match="expected a network with convolutions in QM-32"):
        analyze([run], ["kernels"], SETTINGS, tmp_path)
