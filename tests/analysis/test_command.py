"""`qrobust analyze` as a user calls it."""

import json
import shutil
import sys

import pytest

from qrobust.__main__ import main

from .conftest import FINISHED


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    """`qrobust analyze ARGUMENTS` in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["qrobust", "analyze", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capfd.readouterr()

    return call


@pytest.mark.slow
def test_options_reach_the_experiments(here, run, tmp_path):
    options = ("-n", 6, "--seed", 2, "-k", "3,12", "--attacks", "fgsm,gn", "--norm", 0.5, "--json", "all.json")
    code, _, errors = here(run / "qm-4", "--figures", "low-pass,heat-map", *options, "--out", "out")
    assert code == 0
    assert "low-pass.png: drawn" in errors
    found = json.loads((tmp_path / "all.json").read_text())
    shared = {"n": 6, "seed": 2}
    assert found["low-pass"]["settings"] == {**shared, "bandwidths": [3, 12], "attacks": ["fgsm", "gn"]}
    assert found["heat-map"]["settings"] == {**shared, "norm": 0.5}
    assert list(found["low-pass"]["cases"][0]["result"]["curves"]) == ["clean", "fgsm", "gn"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}.{suffix}" for name in found for suffix in ("json", "png", "svg")
    }


def test_without_a_folder_one_run_keeps_its_own_and_several_share_one_here(here, run, other_run, tmp_path):
    shutil.copytree(run, tmp_path / "mine")
    assert here("mine", "--figures", "kernels", "-n", 3)[0] == 0
    assert (tmp_path / "mine" / "analysis" / "kernels.svg").exists()
    assert here("mine", other_run, "--figures", "kernels", "-n", 3)[0] == 0
    labels = [case["label"] for case in json.loads((tmp_path / "analysis" / "kernels.json").read_text())["cases"]]
    assert labels == ["mine", "other"]


def test_saved_files_are_drawn_again(here, outcome, tmp_path):
    _, out = outcome
    code, _, errors = here(out / "kernels.json", out / "masks.json", "--out", "again", "--json", "both.json")
    assert (code, errors.count("drawn")) == (0, 2)
    assert (tmp_path / "again" / "masks.svg").read_bytes() == (out / "masks.svg").read_bytes()
    assert list(json.loads((tmp_path / "both.json").read_text())) == ["kernels", "masks"]


@pytest.mark.slow
def test_several_results_make_an_ablation(here, tmp_path):
    for name, bits in (("four", 4), ("float", 32)):
        shutil.copy(FINISHED / f"qm-{bits}" / "eval.json", tmp_path / f"{name}.json")
    assert here("four.json", "float.json")[0] == 0
    data = json.loads((tmp_path / "analysis" / "ablation.json").read_text())
    assert [case["label"] for case in data["cases"]] == ["four", "float"]
    options = ("--figures", "ablation,similarity-to-artifact", "-n", 20, "--attacks", "fgsm", "--out", "widths")
    assert here(FINISHED, *options)[0] == 0
    assert (tmp_path / "widths" / "similarity-to-artifact.png").stat().st_size > 2000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--figures", "heatmap"], "expected a figure, got 'heatmap'; did you mean 'heat-map'?"),
        (["-n", "161"], "expected -n in [1, 160]"),
        (["-k", "13"], "expected -k in [1, 12], the side of the images, got 13"),
        (["-k", "a"], "expected -k as 1,32, got 'a'"),
        (["--attacks", "pgd"], "expected an attack, got 'pgd'"),
        (["--norm", "0"], "expected --norm above 0"),
        (["--figures", "ablation"], "expected eval.json in"),
    ],
)
def test_mistakes_are_one_line_and_code_2(here, run, arguments, text):
    code, out, errors = here(run, *arguments)
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ")
    assert text in errors


def test_what_is_no_run(here, tmp_path):
    (tmp_path / "five.json").write_text("5")
    for path, text in (("missing", "expected a run folder"), ("five.json", "expected the result of one network")):
        code, _, errors = here(path)
        assert (code, errors.count("\n")) == (2, 1)
        assert text in errors
