"""Every name has an experiment and a drawing, and both are found without the other's libraries."""

import dataclasses
import subprocess
import sys

import pytest

from qrobust.analyze import NAMES, ROWS, chosen
from qrobust.analyze.cases import Settings
from qrobust.analyze.needs import NEEDS
from qrobust.analyze.table import function
from qrobust.errors import RecipeError

ASKED = ("low-pass", "filtered", "perturbations", "mean-spectrum", "aggressiveness", "heat-map", "kernels", "masks",
         "frequency-ratio", "similarity", "ablation")  # fmt: skip


def test_all_figures_of_the_papers_are_there():
    assert set(ASKED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_whole(name):
    row, fields = ROWS[name], {field.name for field in dataclasses.fields(Settings)}
    assert function("experiments", name).__doc__
    assert function("figures", name).__doc__
    assert set(row.needs) <= set(NEEDS)
    assert set(row.uses) <= fields
    assert "fig." in row.paper or "table" in row.paper


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
    code = f"import sys, qrobust.analyze as a; {code}; print(*sorted({heavy} & {{*sys.modules}}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_naming_and_drawing_need_no_torch():
    assert loaded("a.chosen('masks')") == []
    assert loaded("from qrobust.analyze.table import function; [function('figures', n) for n in a.NAMES]") == []
