"""Evaluations with the settings that decided the weights."""

from qrobust.analyze.cases import Result, open_cases
from qrobust.analyze.experiments.ablation import ablation
from qrobust.storage import read_json

from ..conftest import SETTINGS


def test_a_run_tells_its_recipe(small_run):
    first, second = (ablation(case) for case in open_cases([small_run / "qm-4", small_run / "qm-2"], SETTINGS))
    evaluation = read_json(small_run / "qm-4" / "eval.json")
    assert first["n"] == 120
    assert first["accuracy"]["pgd-5"]["accuracy"] == evaluation["attacks"]["pgd-5"]["accuracy"]
    assert list(first["accuracy"]) == ["clean", "gn", "pgd-5"]
    assert first["settings"]["train.epochs"] == 3
    assert {key for key in first["settings"] if first["settings"][key] != second["settings"][key]} == {"bits"}
    assert not any(key.startswith(("evaluate", "name")) for key in first["settings"])


def test_a_file_alone_tells_its_accuracies():
    share = {"accuracy": 0.5, "ci95": [0.4, 0.6], "settings": {}}
    found = ablation(Result("a", {"n": 4, "clean": share, "attacks": {"fgsm": share}}))
    kept = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    assert found == {"settings": {}, "n": 4, "accuracy": {"clean": kept, "fgsm": kept}}
