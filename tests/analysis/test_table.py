"""Every name has an experiment and a drawing; drawing needs no torch."""

import dataclasses
import subprocess
import sys

import pytest

from qrobust.analysis import NAMES, chosen
from qrobust.analysis.cases import Settings
from qrobust.analysis.figures import FIGURES
from qrobust.analysis.session import EXPERIMENTS
from qrobust.errors import RecipeError

ASKED = ("low-pass", "filtered", "perturbations", "mean-spectrum", "aggressiveness", "heat-map", "kernels", "masks",
         "frequency-ratio", "similarity", "ablation")  # fmt: skip


def test_all_figures_of_the_papers_are_there():
    assert set(ASKED) <= set(NAMES)


def test_both_tables_have_the_same_names_in_the_same_order():
    assert tuple(EXPERIMENTS) == tuple(FIGURES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_whole(name):
    experiment, fields = EXPERIMENTS[name], {field.name for field in dataclasses.fields(Settings)}
    assert experiment.measure.__doc__
    assert FIGURES[name].__doc__
    assert experiment.measure.__name__ == FIGURES[name].__name__ == name.replace("-", "_")
    assert set(experiment.uses) <= fields
    assert "fig." in experiment.paper or "table" in experiment.paper


def test_names_are_taken_once_and_in_their_order():
    assert chosen("masks, low-pass,masks,") == ("masks", "low-pass")
    assert chosen("") == ()


@pytest.mark.parametrize(
    ("text", "hint"), [("heatmap", "did you mean 'heat-map'?"), ("masks,lowpass", "did you mean 'low-pass'?")]
)
def test_unknown_names_get_a_hint(text, hint):
    with pytest.raises(RecipeError, match=r"expected a figure, got ") as caught:
        chosen(text)
    assert hint in str(caught.value)


def loaded(code):
    """Which of the heavy libraries some code loads."""
    heavy = "{'torch', 'matplotlib', 'onnx'}"
    code = f"import sys, qrobust.analysis as a; {code}; print(*sorted({heavy} & {{*sys.modules}}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_naming_needs_nothing_and_drawing_no_torch(outcome):
    assert loaded("a.chosen('masks')") == []
    path = outcome[1] / "perturbations.json"
    assert loaded(f"import json; a.draw(json.loads(open({str(path)!r}).read()))") == ["matplotlib"]
