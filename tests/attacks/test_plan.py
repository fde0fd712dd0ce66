"""Plans: what they take, how a budget cuts or repeats them, and few classes."""

from itertools import pairwise

import pytest

from qrobust.attacks.apgd import CANDIDATES
from qrobust.attacks.plan import FIRST, FLOAT, LEAST, ROUNDED, SQUARE, StrongConfig, most_passes, plan
from qrobust.errors import RecipeError

KINDS = {"float": 1, "rounded": 3}
WHOLE = StrongConfig()


def names(parts, forms=("own", "soft", "leaky")):
    return [part.name(forms) for part in parts]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("forms", KINDS.values(), ids=KINDS)
def test_a_budget_is_kept_and_used(forms, quick):
    found = [plan(StrongConfig(quick, budget), forms=forms, classes=10) for budget in range(LEAST, 9000, 271)]
    for budget, parts in zip(range(LEAST, 9000, 271), found, strict=True):
        taken = sum(most_passes(parts, 10))
        assert taken <= budget
        assert taken > budget - 330 or budget < 61  # what the next part takes
    assert all(len(fewer) <= len(more) for fewer, more in pairwise(found))
    whole = plan(StrongConfig(quick), forms=forms, classes=10)
    exact = plan(StrongConfig(quick, sum(most_passes(whole, 10))), forms=forms, classes=10)
    assert exact == whole


def test_the_cheapest_comes_first():
    for forms in KINDS.values():
        assert plan(WHOLE, forms=forms, classes=10)[0] == FIRST
    assert sum(most_passes(plan(StrongConfig(quick=True), forms=3, classes=10), 10)) < 500


@pytest.mark.parametrize("forms", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 1000])
def test_parts_fit_the_classes(classes, forms):
    for budget in (0, 8000):
        for part in plan(StrongConfig(budget=budget), forms=forms, classes=classes):
            assert part.rank is None or part.rank < min(CANDIDATES, classes - 1)
            assert part.loss != "dlr" or classes >= (3 if part.rank is None else 4)


def test_two_classes_are_aimed_at_once():
    ranks = [part.rank for part in plan(WHOLE, forms=1, classes=2) if part.rank is not None]
    assert ranks == [0, 0]  # from the image, and from a random start


def test_a_second_round_begins_elsewhere():
    budget = 2 * sum(most_passes(plan(WHOLE, forms=1, classes=10), 10))
    parts = plan(StrongConfig(budget=budget), forms=1, classes=10)
    again = parts[len(FLOAT) + 1 :][: len(FLOAT)]
    assert {part.rank for part in again if part.loss == "margin"} == {3, 4, 5}
    assert all(part.start != "image" for part in again)


def test_names_say_what_is_done():
    assert names(plan(WHOLE, forms=3, classes=10))[:4] == ["margin-30", "margin-50, near", "square-240, last",
                                                          "ce-50, random"]  # fmt: skip
    turns = names(ROUNDED)
    assert "margin-50, random, soft" in turns
    assert "margin-50, random, leaky" in turns
    assert names(FLOAT)[0] == "margin-30, target 1"
    assert names(ROUNDED, ("only",))[4] == "margin-50, random"


def test_square_takes_no_gradient():
    squares = [part for part in ROUNDED if part.loss == SQUARE]
    assert most_passes(squares, 10) == (242 * len(squares), 0)


@pytest.mark.parametrize("budget", [1, 2])
def test_less_than_a_step_is_no_attack(budget):
    with pytest.raises(RecipeError, match=f"a budget of 3 passes or more, got {budget}; else it is no attack"):
        StrongConfig(budget=budget)
