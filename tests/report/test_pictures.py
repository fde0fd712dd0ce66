"""Charts in the page's colours, figures of an analysis inside the page, and images of a suite."""

import base64
import io
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from qrobust.report import pictures
from qrobust.report.pictures import HEIGHT, MOST_SIDE, WIDTH, Line, chart, examples
from qrobust.runtime import Artifact
from qrobust.storage import write_json

from .conftest import analysed

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
    assert used <= set(re.findall(r"--(\w+):", (Path(pictures.__file__).parent / "style.css").read_text()))
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


def test_title_and_caption_are_text_and_the_figure_a_picture(tmp_path):
    write_json(tmp_path / "low-pass.json", analysed())
    (found,) = pictures.figures([tmp_path / "low-pass.json"])
    assert found.title == "Accuracy behind a low-pass filter"
    assert "n = 12 test images of digits" in found.caption
    assert "\n" not in found.caption
    kind, data = found.source.split(";base64,")
    assert kind == "data:image/svg+xml"
    assert b"Accuracy behind" not in base64.b64decode(data)  # it stands in the page, not twice
    assert found.width > found.height > 0


def test_a_heavy_figure_is_drawn_in_pixels_or_left_out(tmp_path, monkeypatch):
    write_json(tmp_path / "low-pass.json", analysed())
    monkeypatch.setattr(pictures, "MOST_SVG", 10)
    assert pictures.figures([tmp_path / "low-pass.json"])[0].source.startswith("data:image/png;base64,")
    monkeypatch.setattr(pictures, "MOST_BYTES", 100)
    (found,) = pictures.figures([tmp_path / "low-pass.json"])
    assert found.source == ""
    assert "Left out of this page for its size" in found.caption


def test_data_that_cannot_be_drawn_is_named(tmp_path):
    write_json(tmp_path / "other.json", {"figure": "low-pass"})
    write_json(tmp_path / "low-pass.json", analysed())
    known, other = pictures.figures([tmp_path / "other.json", tmp_path / "low-pass.json"][::-1])
    assert known.source
    assert other.caption.startswith("Could not be drawn: expected the data of a figure")


EPS = 8 / 255


def artifact(y, after, channels=1, side=4, step=8, **more):
    """right when clean; labels `after` under the attack "pgd"; `step` up in the first pixel, down in the last."""
    clean = np.full((len(y), channels, side, side), 100, np.uint8)
    moved = clean.copy()
    moved[:, :, 0, 0], moved[:, :, -1, -1] = 100 + step, 100 - step
    suite = {
        "y": np.array(y),
        "label.clean": np.array(y),
        "label.pgd": np.array(after),
        "x.clean": clean,
        "x.pgd": moved,
    }
    names = tuple(f"class {index}" for index in range(10))
    parts = {"sets": ("clean", "pgd"), "manifest": {"reference": {"clean": 1.0, "pgd": 0.5}}, "eps": EPS}
    made = SimpleNamespace(suite=suite, classes=names, **parts | more)
    made.found_by = partial(Artifact.found_by, made)
    return made


def pixels(uri):
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_broken_ones_of_different_classes_come_first():
    found = examples(artifact([0, 1, 1, 2, 3], [0, 5, 6, 7, 3]))
    assert [(one.true, one.after) for one in found] == [
        ("class 1", "class 5"), ("class 2", "class 7"), ("class 0", "class 0"), ("class 3", "class 3"),
    ]  # fmt: skip


def test_images_that_were_wrong_before_are_not_shown():
    made = artifact([0, 1], [3, 3])
    made.suite["label.clean"] = np.array([9, 1])
    assert [(one.true, one.before) for one in examples(made)] == [("class 1", "class 1")]


@pytest.mark.parametrize(("channels", "step"), [(1, 8), (3, 8), (1, 2)])  # a step of 2: in l2 a pixel moves little
def test_pictures_are_the_suites(channels, step):
    one = examples(artifact([0], [1], channels, step=step))[0]
    assert pixels(one.clean).shape == ((4, 4, 3) if channels == 3 else (4, 4))
    assert np.unique(pixels(one.clean)).tolist() == [100]
    assert pixels(one.adversarial)[0, 0].max() == 100 + step
    difference = pixels(one.difference)
    assert (difference[0, 0].max(), difference[1, 1].max(), difference[-1, -1].max()) == (255, 128, 0)


def test_large_images_are_scaled_down_and_suites_without_attacks_show_none():
    assert pixels(examples(artifact([0], [1], side=2 * MOST_SIDE))[0].clean).shape == (MOST_SIDE, MOST_SIDE)
    assert examples(artifact([0], [1], sets=("clean",))) == ()


def test_the_attack_that_breaks_most_is_shown():
    made = artifact([0], [1], sets=("clean", "fgsm", "pgd"))
    made.manifest["reference"]["fgsm"] = 0.9
    assert examples(made)[0].attack == "pgd"


def test_the_part_of_a_cascade_that_found_an_image_is_named():
    made = artifact([0, 1], [1, 1])
    assert [one.part for one in examples(made)] == ["", ""]  # of suites without names
    attack = examples(made)[0].attack
    names = np.array([b"ce-50, random", b"clean"])  # the second is an image as it came
    made.suite[f"found_by.{attack}"] = names.view(np.uint8).reshape(2, -1)
    assert [(one.true, one.part) for one in examples(made)] == [("class 0", "ce-50, random"), ("class 1", "")]
