"""Bits by layer: exact where everything can be tried."""

import itertools
import random

import pytest

from qrobust.errors import ModelError
from qrobust.quant.allocation import FINEST, Budget, Choice, allocate, budget, pareto


def some(layers, seed=0):
    draw = random.Random(seed)
    return {
        f"layer{k}": [Choice(bits, size * bits, size * draw.random() / bits**2) for bits in (2, 4, 6, 8)]
        for k, size in enumerate(draw.randint(1, 50) for _ in range(layers))
    }


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_no_other_allocation_is_better(share):
    choices = some(5)
    most = share * sum(options[-1].cost for options in choices.values())
    found = allocate(choices, most)
    every = [
        (sum(one.cost for one in combination), sum(one.loss for one in combination))
        for combination in itertools.product(*choices.values())
    ]
    assert found.cost <= most
    assert found.loss == pytest.approx(min(loss for cost, loss in every if cost <= most))
    chosen = [next(one for one in choices[name] if one.bits == bits) for name, bits in found.bits.items()]
    assert (sum(one.cost for one in chosen), sum(one.loss for one in chosen)) == pytest.approx((found.cost, found.loss))


def test_a_front_falls_and_is_of_bounded_length():
    choices = some(60)
    front = pareto(choices)
    assert 1000 < len(front) <= FINEST
    assert all(a.cost < b.cost and a.loss > b.loss for a, b in itertools.pairwise(front))
    assert front[-1].loss == pytest.approx(sum(min(one.loss for one in options) for options in choices.values()))
    assert set(front[0].bits.values()) == {2}


def test_a_budget_below_the_least_is_refused():
    with pytest.raises(
        ModelError, match=r"expected a budget of 6 or more, which all layers take at their least, got 5"
    ):
        allocate({"a": [Choice(2, 6, 1.0), Choice(4, 12, 0.5)]}, 5)


@pytest.mark.parametrize(("text", "expected"), [
    ("0.6x", Budget(600, "bytes")), ("1200", Budget(1200, "bytes")), ("1.5kB", Budget(1500, "bytes")),
    ("2MB", Budget(2e6, "bytes")), ("3.2Gbitops", Budget(3.2e9, "bitops")), ("7bitops", Budget(7, "bitops")),
])  # fmt: skip
def test_budgets(text, expected):
    assert budget(text, size_bytes=1000) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "0x", "0", "1.5 parsecs", "nan", "1e3"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ModelError, match=r"expected a budget as 0.6x, 120kB or 3.2Gbitops, got"):
        budget(text, size_bytes=1000)
