"""Files that version 0.1.0 wrote (tests/fixtures/0.1.0) are read, or refused in one line with a remedy that works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qrobust import recipe
from qrobust.evaluation import compare, read_outcomes
from qrobust.report import write
from qrobust.runs.run import Run
from qrobust.runtime import Artifact, check

OLD = Path(__file__).parent / "fixtures" / "0.1.0"
WEIGHTS = ("qm-32/model.safetensors", "qm-4/model.safetensors")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run folder, to be worked in."""
    return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


def test_an_evaluation_is_read_and_compared() -> None:
    result, masks = read_outcomes(OLD / "eval.json")
    assert result["attacks"]["apgd-ce"]["accuracy"] == masks["apgd-ce"].mean() == 0.35
    assert compare(OLD / "eval.json", OLD / "eval.json")["sets"]["pgd-10"]["difference"] == 0


def test_an_artifact_is_checked() -> None:
    report = check(Artifact.load(OLD / "run" / "qm-4" / "artifact"))
    assert report.passed
    assert report.accuracy["clean"] == pytest.approx(0.867, abs=0.01)


def test_a_report_is_written(run: Path) -> None:
    assert "QM-4" in write(run).read_text()


def _quantised(run: Run) -> None:
    """Every stage of one width: of both, as much again."""
    run.train()
    for stage in (run.evaluate, run.export, run.check, run.attack_file):
        stage(4)


@pytest.mark.parametrize("stages", [_quantised, pytest.param(Run.all_stages, marks=pytest.mark.slow)])
def test_a_run_goes_on_and_trains_nothing_anew(
    run: Path, stages: Callable[[Run], object], capsys: pytest.CaptureFixture[str]
) -> None:
    stages(Run.open(run))
    assert [(run / name).read_bytes() for name in WEIGHTS] == [(OLD / "run" / name).read_bytes() for name in WEIGHTS]
    assert [line for line in capsys.readouterr().err.splitlines() if "epoch" in line] == []
    old, new = (json.loads((folder / "qm-4" / "eval.json").read_text()) for folder in (OLD / "run", run))
    assert new["clean"]["accuracy"] == pytest.approx(old["clean"]["accuracy"], abs=0.1)  # on another choice of images
    assert Run.open(run).networks.has_average(4) is False


def test_a_run_of_a_changed_recipe_is_refused_by_its_key(run: Path) -> None:
    settings = recipe.load(str(run / "recipe.toml"), ["train.epochs=11"])
    with pytest.raises(Exception, match=r"train\.epochs: trained with 10, the recipe has 11"):
        Run(settings, run).train()
