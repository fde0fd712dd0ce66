"""McNemar's test by counting every outcome, and by scipy."""

import itertools
import math

import pytest

from qrobust.evaluate import mcnemar
from qrobust.evaluate.statistics import at_least

from ..conftest import evidence


def enumerated(lost, gained):
    """Share of all tosses of lost + gained coins that are at least as uneven as this one."""
    uneven = abs(lost - gained)
    tosses = list(itertools.product((0, 1), repeat=lost + gained))
    return sum(abs(lost + gained - 2 * sum(toss)) >= uneven for toss in tosses) / len(tosses)


@pytest.mark.parametrize(("lost", "gained"), list(itertools.product(range(6), range(7))))
def test_it_is_the_share_of_all_outcomes(lost, gained):
    assert mcnemar(lost, gained) == pytest.approx(enumerated(lost, gained), rel=1e-12)


@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (5, 5), (2, 10), (30, 11), (100, 160), (480, 520), (3000, 2700)])
def test_it_is_the_binomial_test(lost, gained):
    evidence("scipy")
    from scipy.stats import binomtest

    assert mcnemar(lost, gained) == pytest.approx(binomtest(lost, lost + gained).pvalue, rel=1e-9)


def test_no_difference_is_worth_nothing():
    assert mcnemar(0, 0) == 1.0


def test_it_has_no_sides():
    assert mcnemar(3, 17) == mcnemar(17, 3) < 0.01


def test_many_images_neither_overflow_nor_vanish():
    assert 0 < mcnemar(0, 1000) < 1e-300
    assert mcnemar(5000, 5000) == 1.0


@pytest.mark.parametrize(
    ("k", "n", "p"), [(0, 5, 0.3), (1, 5, 0.3), (5, 5, 0.3), (31, 200, 0.1), (180, 200, 0.5), (3, 4, 1.0)]
)
def test_at_least_is_the_tail_of_the_binomial(k, n, p):
    expected = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
    assert at_least(k, n, p) == pytest.approx(expected, rel=1e-9)
