"""Which networks stand side by side, what they are called, and what is computed once."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from qrobust.analysis.cases import Case, Settings, open_cases, open_results
from qrobust.data import choose
from qrobust.errors import DataError, RunError
from qrobust.runs.run import Run

from .conftest import SETTINGS


def labels(*paths):
    return [case.label for case in open_cases(paths, SETTINGS)]


def test_a_run_alone_shows_its_widths_and_several_their_float_networks(run, other_run):
    assert labels(run) == ["QM-32", "QM-4"]
    assert labels(run, other_run) == ["both", "other"]
    assert labels(run / "qm-4") == ["QM-4"]
    assert labels(run / "qm-4", run) == ["QM-4", "QM-32"]
    assert labels(run / "qm-4", other_run) == ["both QM-4", "other"]


def test_runs_of_one_name_are_told_apart_by_the_folder_above(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy" / "both")
    above = run.parent.name
    assert labels(run, tmp_path / "copy" / "both") == [f"{above}/both", "copy/both"]


def test_what_cannot_stand_there_is_refused(run, tmp_path):
    for paths, text in (
        ([run, run], "each network once, got QM-32"),
        ([tmp_path], "expected a run folder"),
        ([run / "qm-2"], r"expected a width of \[32, 4\]"),
    ):
        with pytest.raises(RunError, match=text):
            open_cases(paths, SETTINGS)
    shutil.copytree(run, tmp_path / "half")
    (tmp_path / "half" / "qm-4" / "train.json").unlink()
    with pytest.raises(RunError, match=r"expected a trained network in .*qm-4, got none; train it"):
        open_cases([tmp_path / "half"], SETTINGS)


@pytest.mark.parametrize("n", [0, 161])
def test_n_beyond_the_data_is_refused(run, n):
    case = Case(Run.open(run), 32, Settings(n=n))
    with pytest.raises(DataError, match=rf"expected -n in \[1, 160\], .* got {n}"):
        _ = case.images


def test_n_and_k_have_defaults(run):
    case = Case(Run.open(run), 32, Settings())
    assert len(case.images) == 160
    assert case.bandwidths == (2, 3, 4, 6, 8, 9, 10, 12)
    for k in (0, 13):
        with pytest.raises(DataError, match=rf"expected -k in \[1, 12\], the side of the images, got {k}"):
            _ = Case(Run.open(run), 32, Settings(bandwidths=(3, k))).bandwidths


def test_perturbations_stay_within_the_threat_and_are_made_once(run, monkeypatch):
    from qrobust.attacks.registry import Attack

    calls, original = [], Attack.perturb

    def attacked(self, scene, x, y, generator):
        calls.append(len(y))
        return original(self, scene, x, y, generator) + 0.5

    monkeypatch.setattr(Attack, "perturb", attacked)
    case = Case(Run.open(run), 32, SETTINGS)
    first, second = (torch.cat([x_adv for _, x_adv, _ in case.adversarial()]) for _ in range(2))
    assert calls == [30]
    assert torch.equal(first, second)
    x = torch.cat([x for x, _ in case.batches()])
    assert (first - x).abs().max() <= 0.05 + 1e-6
    assert 0 <= first.min() <= first.max() <= 1


def test_the_images_are_a_stratified_choice_by_the_seed(run):
    opened = Run.open(run)
    for seed in (3, 4):
        case = Case(opened, 32, replace(SETTINGS, seed=seed))
        expected, _ = choose(opened.dataset.test, 30, seed)
        assert torch.equal(case.images.x, expected.x)
        assert case.images.y.bincount().max() - case.images.y.bincount().min() <= 1


def test_a_case_is_known_by_weights_threat_and_images(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    (first,), (second,) = (open_cases([folder / "qm-4"], SETTINGS) for folder in (run, tmp_path / "copy"))
    reads = ("*.safetensors",)
    assert first.identity(reads) == replace(second, label="another").identity(reads)
    assert first.identity(()) != first.identity(reads)
    (tmp_path / "copy" / "qm-4" / "model.safetensors").write_bytes(b"others")
    assert first.identity(reads) != second.identity(reads)


def test_results_are_evaluations(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps({"n": 1, "clean": {}, "attacks": {}}))
    bad.write_text("[]")
    assert [result.label for result in open_results([good])] == ["good"]
    with pytest.raises(RunError, match=r"expected the result of one network in .*bad.json"):
        open_results([good, bad])
