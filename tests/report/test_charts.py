"""Where points come to lie."""

import pytest

from qrobust.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Data, chart


def test_ends_of_the_axes_are_those_of_the_canvas():
    drawn = chart("t", "x", "y", [Data("a", [0, 10], [2.0, 4.0])])
    assert drawn.lines[0].points == ((LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP))
    assert [text for _, text in drawn.y.ticks] == ["2", "2.5", "3", "3.5", "4"]
    assert drawn.x.ticks[0] == (LEFT, "0")


def test_a_wide_range_is_logarithmic():
    drawn = chart("t", "x", "y", [Data("a", [1, 2, 3], [0.01, 0.1, 1.0])])
    heights = [y for _, y in drawn.lines[0].points]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert [text for _, text in drawn.y.ticks] == ["0.01", "0.1", "1"]


@pytest.mark.parametrize("ys", [[0.0], [5.0], [-1e-9, 0.0], [99.2, 99.2], [1e6, 3e6], [0.0, 1e-7], [1e-3, 1.0]])
def test_every_point_lies_inside_and_ticks_are_few(ys):
    drawn = chart("t", "x", "y", [Data("a", range(len(ys)), ys)])
    for x, y in drawn.lines[0].points:
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM
    assert 2 <= len(drawn.y.ticks) <= 8
    assert len({text for _, text in drawn.y.ticks}) == len(drawn.y.ticks)


def test_intervals_stay_on_the_canvas_and_count_for_its_range():
    drawn = chart("t", "x", "y", [Data("a", [2.0], [50.0], [(20.0, 90.0)])], from_zero=True, joined=False)
    (_, low, high), (_, y) = drawn.lines[0].bars[0], drawn.lines[0].points[0]
    assert TOP <= high < y < low <= HEIGHT - BOTTOM
    assert drawn.x.ticks[0] == (LEFT, "0")


def test_the_summary_says_the_numbers():
    drawn = chart("t", "epoch", "loss", [Data("a", [1, 2], [2.0, 0.5]), Data("b", [3], [0.25])])
    assert drawn.summary == "loss over epoch. a: from 2 to 0.5; b: 0.25 at 3."
