"""Two results side by side, counted by hand."""

import json

import pytest

from qrobust.errors import RunError
from qrobust.evaluation import compare, mcnemar
from qrobust.threat import Threat

from .helpers import outcomes

FIRST = {"clean": "11111110", "gn": "00001111", "fgsm": "11111000", "pgd_20": "11110000", "bim_20": "00000000"}
SECOND = {"clean": "11111111", "gn": "11110000", "fgsm": "10001110", "pgd_20": "11000111", "cw_20": "00000000"}


def saved(folder, name, **settings):
    path = folder / f"{name}.json"
    outcomes(**settings).save(path)
    return path


def both(folder, first=None, second=None):
    return saved(folder, "first", **FIRST | (first or {})), saved(folder, "second", **SECOND | (second or {}))


def test_pairs_are_counted(tmp_path):
    result = compare(*both(tmp_path))
    assert result["n"] == 8
    assert list(result["sets"]) == ["clean", "gn", "fgsm", "pgd-20", "worst_case"]
    assert result["sets"]["fgsm"] == {
        "first": 5 / 8,
        "second": 4 / 8,
        "difference": -1 / 8,
        "p_value": mcnemar(3, 2),
        "gained": [5, 6],
        "lost": [1, 2, 3],
    }
    clean = result["sets"]["clean"]
    assert (clean["gained"], clean["lost"], clean["p_value"]) == ([7], [], 1.0)


def test_the_worst_case_is_over_bounded_attacks_of_both(tmp_path):
    """fgsm and pgd-20; not noise, which has no bound, nor bim-20 and cw-20, which only one has."""
    worst = compare(*both(tmp_path))["sets"]["worst_case"]
    assert (worst["first"], worst["second"]) == (4 / 8, 3 / 8)  # 11110000 and 10000110
    assert (worst["gained"], worst["lost"]) == ([5, 6], [1, 2, 3])


def test_with_itself_nothing_changes(tmp_path):
    first, _ = both(tmp_path)
    for row in compare(first, first)["sets"].values():
        assert (row["difference"], row["p_value"], row["gained"], row["lost"]) == (0.0, 1.0, [], [])


def test_the_other_way_round_signs_change(tmp_path):
    first, second = both(tmp_path)
    there, back = compare(first, second)["sets"], compare(second, first)["sets"]
    for name, row in there.items():
        assert back[name]["difference"] == -row["difference"]
        assert back[name]["p_value"] == row["p_value"]
        assert (back[name]["gained"], back[name]["lost"]) == (row["lost"], row["gained"])


def test_the_result_is_json(tmp_path):
    json.dumps(compare(*both(tmp_path)), allow_nan=False)


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("images", {"images": "other"}),
        ("threat", {"threat": Threat("linf", 4 / 255)}),
        ("threat", {"threat": Threat("l2", 8 / 255)}),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path, key, other):
    first, second = both(tmp_path, second=other)
    with pytest.raises(RunError) as caught:
        compare(first, second)
    text = f"expected results on the same {key}, got {first} and {second} on different ones; evaluate both anew"
    assert str(caught.value).startswith(text)
