"""Figures of an analysis inside the page."""

import base64

from qrobust.report import frequencies
from qrobust.storage import write_json

from .conftest import analysed


def test_title_and_caption_are_text_and_the_figure_a_picture(tmp_path):
    write_json(tmp_path / "low-pass.json", analysed())
    (found,) = frequencies.figures([tmp_path / "low-pass.json"])
    assert found.title == "Accuracy behind a low-pass filter"
    assert "n = 12 test images of digits" in found.caption
    assert "\n" not in found.caption
    kind, data = found.source.split(";base64,")
    assert kind == "data:image/svg+xml"
    assert b"Accuracy behind" not in base64.b64decode(data)  # it stands in the page, not twice
    assert found.width > found.height > 0


def test_a_heavy_figure_is_drawn_in_pixels_or_left_out(tmp_path, monkeypatch):
    write_json(tmp_path / "low-pass.json", analysed())
    monkeypatch.setattr(frequencies, "MOST_SVG", 10)
    assert frequencies.figures([tmp_path / "low-pass.json"])[0].source.startswith("data:image/png;base64,")
    monkeypatch.setattr(frequencies, "MOST_BYTES", 100)
    (found,) = frequencies.figures([tmp_path / "low-pass.json"])
    assert found.source == ""
    assert "Left out of this page for its size" in found.caption


def test_data_that_cannot_be_drawn_is_named(tmp_path):
    write_json(tmp_path / "other.json", {"figure": "low-pass"})
    write_json(tmp_path / "low-pass.json", analysed())
    known, other = frequencies.figures([tmp_path / "other.json", tmp_path / "low-pass.json"][::-1])
    assert known.source
    assert other.caption.startswith("Could not be drawn: expected the data of a figure")
