"""Several runs on one page."""

import re
import shutil

import pytest

from qrobust.errors import RunError
from qrobust.report import write_comparison
from qrobust.report.comparison import _compared, _page

from .conftest import HEADINGS, Parsed, change, share


@pytest.fixture
def runs(lean, tmp_path):
    """Two runs of the same images: the second is more robust in torch."""
    other = shutil.copytree(lean, tmp_path / "second" / "tiny")
    change(other / "qm-4" / "eval.json", lambda found: found.update(worst_case=share(0.488, 0.25, 0.73)))
    change(other / "qm-4" / "check.json", lambda found: found.update(worst_case=0.5))
    return lean, other


def test_widths_by_places_with_the_strongest_number_first(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_comparison(runs)
    assert path.name == "comparison.html"
    found = Parsed(path.read_text())
    assert (
        "Most robust below 32 bits: second/tiny QM-4, export broken (square_gap); under weak attacks 48.8 %"
        in found.text
    )
    assert [tag for tag, _ in found.tags if tag in HEADINGS][:2] == ["h1", "h2"]
    assert len(found.every("svg")) == 2  # a panel a width
    assert found.every("script") == []
    for text in ("QM-32", "QM-4", "41.1 19.8–68.1", "48.8 25.0–73.0", "can only overestimate", "✗ export broken"):
        assert text in found.text, text
    assert "not alike" not in found.text
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_keeps_numbers_from_comparing_is_said(runs):
    recipe = runs[1] / "recipe.toml"
    recipe.write_text(re.sub(r"(?m)^eps = .*", "eps = 0.0625", recipe.read_text(), count=1))
    change(runs[1] / "qm-4" / "eval.json", lambda found: found.update(images="ef" * 32))
    text = Parsed(_page(_compared(runs))).text
    assert "These runs are not alike in all that decides a number." in text
    assert re.search(r"Not the threat: linf, eps 8/255 and linf, eps \S+\. Not the images of QM-4\.", text)


def test_a_run_without_a_width_or_an_attack_has_an_empty_place(runs):
    (runs[1] / "qm-4" / "eval.json").unlink()
    (runs[1] / "qm-4" / "check.json").unlink()
    text = Parsed(_page(_compared(runs))).text
    assert "! export not checked – – – – – –" in text


def test_names_are_text(runs, tmp_path):
    moved = runs[1].rename(tmp_path / "<b>&")
    found = Parsed(_page(_compared([runs[0], moved])))
    assert found.every("b") == []
    assert "<b>& ! export held" in found.text


@pytest.mark.parametrize(
    ("folders", "message"),
    [((0, 0), "expected each run once, got .*; leave one out"), ((0,) * 7, "expected 6 runs at most on one page")],
)  # fmt: skip
def test_bad_input_is_one_line(runs, folders, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=message):
        write_comparison([runs[index] for index in folders])
    assert not (tmp_path / "comparison.html").exists()


def test_several_runs_are_one_page_by_the_verb(report, runs, tmp_path):
    code, output, _ = report(*runs, "--out", tmp_path / "both.html")
    assert (code, output) == (0, f"report: {tmp_path / 'both.html'}\n")
