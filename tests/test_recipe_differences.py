"""Two recipes that differ are told apart by the first key that does."""

import tomllib

import pytest

from qrobust import recipe
from qrobust.recipe import difference

CASES = [
    ({"train": {"lr": 0.1}}, {"train": {"lr": 0.05}}, "train.lr: trained with 0.1, the recipe has 0.05"),
    ({"seed": 0, "train": {"lr": 1}}, {"train": {"lr": 2}, "seed": 1}, "train.lr: trained with 1, the recipe has 2"),
    ({"a": {"b": {"c": "x"}}}, {"a": {"b": {"c": "y"}}}, "a.b.c: trained with 'x', the recipe has 'y'"),
    ({"sar": None}, {"sar": {"weight": 1}}, "sar: trained with none, the recipe has a table"),
    ({"sar": {"weight": 1}}, {}, "sar: trained with a table, the recipe has none"),
    ({"milestones": [1, 2]}, {"milestones": (1, 2)}, None),
    ({"milestones": [1, 2]}, {"milestones": (1, 3)}, "milestones: trained with [1, 2], the recipe has [1, 3]"),
    ({"lr": 1}, {"lr": 1.0, "later": None}, None),
    ({}, {}, None),
]


@pytest.mark.parametrize(("old", "new", "found"), CASES)
def test_the_first_difference_is_named(old, new, found):
    assert difference(old, new) == found


def test_recipes_differ_where_one_was_changed():
    one, other = (recipe.load("digits", over).model_dump(mode="json") for over in ((), ["quant.epochs=99"]))
    assert difference(one, one) is None
    assert difference(one, other) == f"quant.epochs: trained with {one['quant']['epochs']}, the recipe has 99"


def test_the_number_of_threads_stands_in_no_table_that_trains():
    """It decides bits, not what is trained: runs of older versions, which had none, go on."""
    unset = recipe.load("digits").model_copy(update={"threads": None})
    assert "threads" not in tomllib.loads(recipe.dump(unset))
    assert recipe.load("digits", ["threads=3"]).threads == 3
