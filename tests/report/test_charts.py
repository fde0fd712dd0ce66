"""Charts in the page's colours, alone and as small multiples."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qrobust.report import charts as module
from qrobust.report.charts import HEIGHT, PANEL, WIDTH, Line, chart, panel

LINE = Line("QM-4", [0, 10], [2.0, 4.0])


def chart_of(*lines, **more):
    drawn = chart("loss", "Loss", "epoch", "training loss", lines, **more)
    return drawn, ElementTree.fromstring(drawn.svg.replace("<svg", '<svg xmlns:xlink="x"', 1))


def texts(svg):
    return [text.text for text in svg.iter("text")]


def ticks(svg, axis):
    """Numbers at the x or the y axis."""
    ends = {"x": "middle", "y": "end"}[axis]
    found = [text.text for text in svg.iter("text") if f"text-anchor: {ends}" in text.get("style")]
    return [text for text in found if re.fullmatch(r"[-\d.e+]+", text)]


def test_words_and_numbers_of_a_chart_are_text():
    drawn, svg = chart_of(LINE, Line("QM-2 <b>$x$", [0, 5], [3.0, 2.5]))
    assert {"epoch", "QM-4", "QM-2 <b>$x$", "0", "10", "2", "4"} <= set(texts(svg))
    assert svg.find("title").text == drawn.title == "Loss"
    assert svg.find("desc").text == "training loss over epoch. QM-4: from 2 to 4; QM-2 <b>$x$: from 3 to 2.5."
    assert len(drawn.svg) < 20_000


def test_a_chart_takes_the_pages_colours_and_has_ids_of_its_own():
    drawn, svg = chart_of(LINE, Line("b", [1], [3.0]))
    assert not re.search(r"#[0-9a-f]{6}\b(?![\w-])", drawn.svg)
    used = set(re.findall(r"var\(--(\w+)\)", drawn.svg))
    assert {"ink", "soft", "grid", "page", "s0", "s1"} == used
    assert used <= set(re.findall(r"--(\w+):", (Path(module.__file__).parent / "style.css").read_text()))
    ids = [element.get("id") for element in svg.iter() if element.get("id")]
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("loss-") for name in ids)
    assert set(re.findall(r"#([\w-]+)", drawn.svg)) <= set(ids)
    assert svg.find(".//style") is None
    assert chart_of(LINE, Line("b", [1], [3.0]))[0] == drawn


def test_a_wide_range_is_logarithmic():
    assert ticks(chart_of(Line("a", [1, 2, 3], [0.01, 0.1, 1.0]))[1], "y") == ["0.01", "0.1", "1"]
    assert ticks(chart_of(Line("a", [1, 2], [0.5, 10.0]))[1], "y") == ["0", "2", "4", "6", "8", "10"]


@pytest.mark.parametrize("ys", [[0.0], [5.0], [-1e-9, 0.0], [99.2, 99.2], [1e6, 3e6], [0.0, 1e-7], [1e-3, 1.0]])
def test_every_point_lies_inside_and_ticks_are_few(ys):
    _, svg = chart_of(Line("a", range(1, 1 + len(ys)), ys, [(y, y) for y in ys]), scattered=True)
    marks = [(float(use.get("x")), float(use.get("y"))) for use in svg.iter("use")]
    assert len(marks) > 3 * len(ys)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in marks)
    found = ticks(svg, "y")
    assert 2 <= len(found) == len(set(found)) <= 8


def test_a_single_epoch_has_no_fractions():
    assert ticks(chart_of(Line("a", [1.0], [0.5]))[1], "x") == ["0", "1", "2"]


def test_intervals_count_for_the_range_and_the_axis_begins_at_zero():
    _, svg = chart_of(Line("a", [2.0], [50.0], [(20.0, 90.0)]), scattered=True)
    ys = [float(text) for text in ticks(svg, "y")]
    assert min(ys) <= 20 < 90 <= max(ys)
    assert ticks(svg, "x")[0] == "0"


def test_a_summary_of_one_point_says_where():
    assert "b: 0.25 at 3." in chart_of(LINE, Line("b", [3], [0.25]))[0].svg


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_drawn(bad):
    with pytest.raises(ValueError, match="not finite"):
        chart_of(Line("a", [1.0, 2.0], [0.5, bad]))


def test_a_small_multiple_has_the_scale_of_its_neighbours_and_the_shades_it_is_given():
    places, line = ("here", "there"), Line("12 images", [1.0], [40.0], [(30.0, 55.5)])
    drawn = panel("places-4", "QM-4", places, {2: line})
    svg = ElementTree.fromstring(drawn.svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert set(texts(svg)) == {"here", "there", "0", "25", "50", "75", "100"}  # the legend stands outside
    assert svg.find("desc").text == "12 images: there 40.0 %."
    assert set(re.findall(r"var\(--(s\d)\)", drawn.svg)) == {"s2"}
    marks = [float(use.get("x")) for use in svg.iter("use") if "--s2" in use.get("style")]
    assert min(marks) > PANEL[0] / 2
