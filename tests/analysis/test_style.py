"""One style: sizes and captions."""

import json

import pytest

from qrobust.analysis import draw
from qrobust.analysis.session import analyze
from qrobust.analysis.style import look, panels
from qrobust.bench.plot import COLOURS

from .conftest import SETTINGS


def text_of(figure):
    """All that is written on a figure."""
    from matplotlib.text import Text

    return " ".join(part.get_text().replace("\n", " ") for part in figure.findobj(Text))


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 1, 4), (7, 2, 4)])
def test_at_most_four_panels_in_a_row(count, rows, columns):
    figure, drawn = panels("a title", count)
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols, len(drawn)) == (rows, columns, count)
    assert [panel.axison for panel in figure.axes] == [True] * count + [False] * (rows * columns - count)


def test_captions_say_n_seed_and_settings(outcome, drawn):
    results, _ = outcome
    for name, data in results.items():
        words = text_of(drawn(name))
        assert 'After "A ' in words
        if name in ("low-pass", "aggressiveness", "mean-spectrum", "heat-map", "frequency-ratio", "similarity"):
            assert "n = 30 test images of npz, seed 3." in words
        if "attacks" in data["settings"]:
            assert "pgd-2" in words
            assert "Threat: linf, eps 12.75/255." in words


def test_cases_differ_in_colour_and_marker():
    looks = [look(index) for index in range(6)]
    assert len({one["color"] for one in looks}) == len({one["marker"] for one in looks}) == 6
    assert look(len(COLOURS))["color"] == COLOURS[0]


@pytest.mark.slow
def test_many_cases_side_by_side(run, other_run, tmp_path):
    """Runs and widths of any kind in one figure."""
    paths = [run, run / "qm-4", other_run]
    data = analyze(paths, ["kernels", "masks"], SETTINGS, tmp_path)
    words = text_of(draw(json.loads(json.dumps(data["kernels"]))))
    assert all(label in words for label in ("both: conv", "both QM-4: conv", "other: conv"))
    (panel,) = draw(data["masks"]).axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["both QM-4"]
    assert panel.get_legend().get_lines()[0].get_color() == COLOURS[1]  # its own, as in figures that show all
