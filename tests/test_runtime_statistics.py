"""Statistics of runtime.py: intervals, the test of a tolerated drop, Holm's correction, images needed."""

import math

import numpy as np
import pytest
from scipy import stats

from qrobust.runtime import drop_p_value, holm, images_needed, paired_interval, wilson

# Wilson


def test_wilson_known_values():
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(500, 1000) == pytest.approx((0.46907, 0.53093), abs=1e-5)


@pytest.mark.parametrize("n", [1, 7, 100])
def test_wilson_is_an_interval_around_the_share_and_symmetric(n):
    for k in range(n + 1):
        low, high = wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert (1 - high, 1 - low) == pytest.approx(wilson(n - k, n))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_wilson_covers_the_truth_about_95_percent_of_the_time(share):
    draws = np.random.default_rng(0).binomial(200, share, 4000)
    covered = [low <= share <= high for low, high in (wilson(int(k), 200) for k in draws)]
    assert 0.925 < np.mean(covered) < 0.975


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson(k, n)


# Drops


def rejections(n, tolerated, gained, drop, alpha):
    """Exact chance that drop_p_value <= alpha, over all tables: a share `gained` won, accuracy down by `drop`."""
    lost, total = 0, 0.0
    for won in range(min(n, int(n * gained + 6 * math.sqrt(n * gained)) + 4)):
        while lost <= n - won and drop_p_value(lost, won, n, tolerated) > alpha:
            lost += 1  # the more images are won, the more must be lost
        tail = stats.binom.sf(lost - 1, n - won, (gained + drop) / (1 - gained))
        total += stats.binom.pmf(won, n, gained) * tail
    return total


@pytest.mark.parametrize(("lost", "gained"), [(10, 2), (0, 0), (5, 9), (60, 30), (0, 7), (400, 350)])
def test_with_nothing_tolerated_it_is_the_exact_one_sided_mcnemar_test(lost, gained):
    exact = stats.binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1
    assert drop_p_value(lost, gained, 1000, 0) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "tolerated"), [(12, 3, 100, 0.05), (25, 0, 500, 0.02), (3, 0, 20, 0.3), (40, 60, 100, 0.1)]
)
def test_a_tolerated_drop_averages_mcnemar_tests(lost, gained, n, tolerated):
    j = np.arange(n + 1)
    mcnemar = np.where(j < lost, stats.binom.sf(lost - j - 1, np.maximum(lost + gained - j, 0), 0.5), 1)
    expected = (stats.binom.pmf(j, n, tolerated) * mcnemar).sum()
    assert drop_p_value(lost, gained, n, tolerated) == pytest.approx(expected, abs=1e-12)


def test_a_p_value_falls_with_images_lost_and_grows_with_those_gained_and_tolerated():
    by_lost = [drop_p_value(k, 5, 200, 0.02) for k in range(60)]
    assert by_lost == sorted(by_lost, reverse=True)
    by_gained = [drop_p_value(20, k, 200, 0.02) for k in range(60)]
    by_tolerated = [drop_p_value(20, 5, 200, k / 100) for k in range(20)]
    assert by_gained == sorted(by_gained)
    assert by_tolerated == sorted(by_tolerated)


@pytest.mark.parametrize("n", [50, 300, 1000])
@pytest.mark.parametrize("tolerated", [0, 0.01, 0.02, 0.1])
@pytest.mark.parametrize("gained", [0, 0.005, 0.05, 0.3])
def test_a_tolerated_drop_is_called_broken_in_at_most_alpha_of_cases(n, tolerated, gained):
    for alpha in (0.05, 0.0125):
        assert rejections(n, tolerated, gained, tolerated, alpha) <= alpha


@pytest.mark.parametrize("tolerated", [0, 0.01, 0.02])
@pytest.mark.parametrize("gained", [0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.0125, 0.8), (0.01, 0.9)])
def test_the_images_asked_for_give_the_power_stated_and_half_of_them_do_not(tolerated, gained, alpha, power):
    needed = images_needed(0.1, tolerated, gained, alpha, power)
    assert rejections(needed, tolerated, gained, 0.1, alpha) >= power
    assert rejections(needed // 2, tolerated, gained, 0.1, alpha) < power


@pytest.mark.parametrize(("drop", "low", "high"), [(0.0, 0, 0), (0.02, 0, 0.05), (0.1, 0.8, 1)])
def test_simulated_checks_of_three_sets_fail_as_often_as_stated(drop, low, high):
    shares = [0.01 + drop, 0.01, 0.98 - drop]
    tables = np.random.default_rng(0).multinomial(300, shares, (400, 3))
    smallest = [min(holm([drop_p_value(int(a), int(b), 300, 0.02) for a, b, _ in check])) for check in tables]
    assert low <= np.mean(np.array(smallest) <= 0.05) <= high


def test_holm_known_values():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.05)])
def test_the_interval_of_a_drop_covers_it_about_95_percent_of_the_time(lost, gained):
    draws = np.random.default_rng(0).multinomial(300, [lost, gained, 1 - lost - gained], 4000)
    covered = [low <= lost - gained <= high for low, high in (paired_interval(a, b, 300) for a, b, _ in draws)]
    assert 0.935 < np.mean(covered) < 0.975


def test_the_interval_of_a_drop_is_symmetric_and_stays_in_range():
    assert paired_interval(1, 0, 1)[1] == 1
    assert paired_interval(0, 1, 1)[0] == -1
    low, high = paired_interval(8, 3, 100)
    assert (-high, -low) == pytest.approx(paired_interval(3, 8, 100))
    assert low < 0.05 < high
