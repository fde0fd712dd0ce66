"""An ablation finds the setting that differs by itself."""

import pytest

from qrobust.analyze import draw


def case(label, share, **settings):
    found = {"accuracy": share, "ci95": [share - 0.1, share + 0.1]}
    accuracy = {"clean": found, "pgd-20": found}
    return {"label": label, "result": {"settings": settings, "n": 50, "accuracy": accuracy}}


def drawn(*cases):
    (panel,) = draw({"figure": "ablation", "paper": "-", "settings": {}, "cases": list(cases)}).axes
    lines = {name: panel.get_lines()[3 * index] for index, name in enumerate(("clean", "pgd-20"))}
    ticks = [tick.get_text() for tick in panel.get_xticklabels()]
    return panel.get_xlabel(), lines, ticks


def test_a_number_is_an_axis_in_its_order_and_no_weight_is_zero():
    name, lines, _ = drawn(
        case("b", 0.6, **{"train.sar.weight": 0.2, "seed": 1}),
        case("a", 0.5, **{"train.sar.weight": 0.05, "train.lr": 0.1}),
        case("c", 0.4, **{"seed": 2, "train.lr": 0.1}),
    )
    assert name == "train.sar.weight"
    assert lines["clean"].get_xydata().ravel() == pytest.approx([0, 40, 0.05, 50, 0.2, 60])
    assert lines["clean"].get_linestyle() == "-"


@pytest.mark.parametrize(
    ("settings", "name", "ticks"),
    [
        (({"train.sar.distance": "l1"}, {"train.sar.distance": "l2"}, {}), "train.sar.distance", ["l1", "l2", "none"]),
        (({"bits": 32}, {"bits": 4}, {"bits": 2}), "bits", ["32", "4", "2"]),
        (({"flip": True}, {"flip": False}, {"flip": True}), "flip", ["True", "False"]),
        (({"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2}), "network", ["one", "two", "three"]),
        (({}, {}, {}), "network", ["one", "two", "three"]),
    ],
)
def test_all_else_are_points_by_name(settings, name, ticks):
    labels = ("one", "two", "three")
    found, lines, shown = drawn(*(case(label, 0.5, **one) for label, one in zip(labels, settings, strict=True)))
    assert (found, shown) == (name, ticks)
    assert lines["clean"].get_linestyle() == "None"


def test_attacks_that_not_all_have_are_left_out():
    first, second = case("a", 0.5), case("b", 0.5)
    del second["result"]["accuracy"]["pgd-20"]
    (panel,) = draw({"figure": "ablation", "paper": "-", "settings": {}, "cases": [first, second]}).axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["clean"]
