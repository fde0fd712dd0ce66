"""Statistics of runtime.py: intervals, the tests of a tolerated drop, Holm's correction, images needed."""

import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, special, stats

from qrobust.runtime import (
    TESTS,
    drop_p_value,
    drop_score,
    holm,
    images_needed,
    mcnemar_tolerated,
    paired_interval,
    wilson,
)

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


# Drops: the older test


@pytest.mark.parametrize(("lost", "gained"), [(10, 2), (0, 0), (5, 9), (60, 30), (0, 7), (400, 350)])
def test_the_older_test_is_mcnemar_s_where_nothing_is_tolerated(lost, gained):
    exact = stats.binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1
    assert mcnemar_tolerated(lost, gained, 1000, 0) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "tolerated"), [(12, 3, 100, 0.05), (25, 0, 500, 0.02), (3, 0, 20, 0.3), (40, 60, 100, 0.1)]
)
def test_the_older_test_averages_mcnemar_tests(lost, gained, n, tolerated):
    j = np.arange(n + 1)
    mcnemar = np.where(j < lost, stats.binom.sf(lost - j - 1, np.maximum(lost + gained - j, 0), 0.5), 1)
    expected = (stats.binom.pmf(j, n, tolerated) * mcnemar).sum()
    assert mcnemar_tolerated(lost, gained, n, tolerated) == pytest.approx(expected, abs=1e-12)


# Drops: the score


def restricted(lost, gained, n, drop):
    """The likeliest shares lost, gained and neither under a drop, by a search; an independent judge of the formula."""

    def unlikely(won):
        shares = np.array([won + drop, won, 1 - 2 * won - drop])
        return -special.xlogy([lost, gained, n - lost - gained], shares).sum()

    least, most = max(-drop, 0), (1 - drop) / 2
    won = optimize.minimize_scalar(unlikely, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x
    return np.array([won + drop, won, 1 - 2 * won - drop])


@pytest.mark.parametrize("drop", [-0.05, 0, 0.02, 0.1])
@pytest.mark.parametrize(("lost", "gained", "n"), [(7, 2, 50), (12, 9, 300), (1, 30, 200), (60, 40, 1000), (3, 1, 64)])
def test_the_score_is_pearson_s_at_the_likeliest_shares_under_the_drop(lost, gained, n, drop):
    """Of a multinomial, Rao's score statistic is Pearson's chi-square at the restricted maximum of the likelihood."""
    counts = np.array([lost, gained, n - lost - gained])
    square = stats.chisquare(counts, n * restricted(lost, gained, n, drop), sum_check=False).statistic
    expected = np.copysign(math.sqrt(square), lost - gained - n * drop)
    assert drop_score(lost, gained, n, drop) == pytest.approx(expected, abs=1e-5)


def test_the_score_of_no_drop_is_mcnemar_s_and_nothing_changed_speaks_for_none():
    assert drop_score(12, 3, 100, 0) == pytest.approx(9 / math.sqrt(15))
    assert drop_score(0, 0, 100, 0) == 0
    assert drop_score(0, 0, 100, 0.02) == pytest.approx(-2 / math.sqrt(100 * 0.02 * 0.98))
    assert drop_score(3, 12, 100, -0.02) == -drop_score(12, 3, 100, 0.02)


# Drops: the exact test


def enumerated(n, tolerated, level):
    """p-values of all tables (lost, gained), by scipy's trinomial on a fine grid of shares gained."""
    tables = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    z = stats.norm.isf(level)

    def excess(drop, lost, gained):
        shares = restricted(lost, gained, n, drop)
        spread = math.sqrt(n * (shares[0] + shares[1] - drop**2))
        return (lost - gained - n * drop) / spread - z

    def lowest(lost, gained):
        return -1 if gained == n else optimize.brentq(excess, -1 + 1e-9, 1 - 1e-9, args=(lost, gained), xtol=1e-9)

    order = np.array([lowest(*table) for table in tables])
    grid = np.linspace(0, 1, 600) ** 2 * (1 - tolerated) / 2  # dense where few are gained
    shares = np.maximum(np.array([grid + tolerated, grid, 1 - 2 * grid - tolerated]), 0).T
    chances = [stats.multinomial.pmf([(*table, n - sum(table)) for table in tables], n, row) for row in shares]
    tails = np.array(chances) @ (order[:, None] >= order[None, :] - 1e-7)
    reach = math.sqrt(-2 * math.log(level / 1000))
    within = np.array([grid <= wilson(gained, n, reach)[1] for _, gained in tables]).T
    return dict(zip(tables, np.minimum(np.where(within, tails, 0).max(axis=0) + level / 1000, 1), strict=True))


@pytest.mark.parametrize(("tolerated", "level"), [(0, 0.025), (0.05, 0.05), (0.1, 0.01)])
def test_a_p_value_is_that_of_every_table_counted(tolerated, level):
    for (lost, gained), expected in enumerated(14, tolerated, level).items():
        found = drop_p_value(lost, gained, 14, tolerated, level)
        assert expected - 1e-5 <= found <= expected * 1.002 + 2e-4, (lost, gained)


@pytest.mark.parametrize(("lost", "gained"), [(135, 20), (160, 30), (400, 270)])
def test_on_thousands_of_images_a_p_value_at_its_level_is_the_score_s(lost, gained):
    level = stats.norm.sf(drop_score(lost, gained, 5000, 0.02))
    assert drop_p_value(lost, gained, 5000, 0.02, level) == pytest.approx(level, rel=0.25)


@pytest.mark.parametrize(("lost", "gained"), [(8, 0), (15, 2), (20, 10), (60, 40)])
def test_with_nothing_tolerated_it_is_mcnemar_s_and_sees_more_than_the_one_that_is_conditional(lost, gained):
    exact = stats.binomtest(lost, lost + gained, alternative="greater").pvalue
    level = stats.norm.sf((lost - gained) / math.sqrt(lost + gained))
    assert 0.8 * level < drop_p_value(lost, gained, 300, 0, level) < exact


def falls(values):
    return np.diff(values).max() <= 1e-6  # a maximum is found to within as much


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
@pytest.mark.parametrize("n", [60, 300])
def test_a_p_value_falls_with_images_lost_and_grows_with_those_gained_and_tolerated(test, n):
    for few in (0, 5):
        assert falls([test(k, few, n, 0.02, 0.0125) for k in range(25)])
        assert falls([-test(few + 7, k, n, 0.02, 0.0125) for k in range(25)])
        assert falls([-test(few + 7, few, n, k / 300, 0.0125) for k in range(30)])


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
@pytest.mark.parametrize("tolerated", [0, 0.02, 0.1])
def test_a_p_value_at_the_ends(test, tolerated):
    for n in (1, 50, 3000):
        assert test(0, 0, n, tolerated) == pytest.approx(1)
        assert test(0, n, n, tolerated) == pytest.approx(1)
        assert (
            0 <= test(n, 0, n, tolerated) <= (0.5501 if n == 1 else 1e-4)
        )  # the larger of two shares is 0.55 for a tolerated tenth
    assert test(0, 0, 0, tolerated) == 1


@pytest.mark.parametrize("counts", [(-1, 0, 9, 0.1), (0, -1, 9, 0.1), (5, 5, 9, 0.1), (1, 0, 9, 1.0), (1, 0, 9, -0.1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="expected lost"):
        drop_p_value(*counts)


# Errors of both kinds


@cache
def fewest_lost(name, n, tolerated, alpha, most):
    """By images gained, 0 to most, the fewest lost that the test calls a drop: more of them, the more are gained."""
    fewest, lost = [], 0
    for gained in range(min(most, n) + 1):
        lost = max(lost, int(gained + n * tolerated))  # what is tolerated is no drop
        while lost <= n - gained and TESTS[name](lost, gained, n, tolerated, alpha) > alpha:
            lost += 1
        fewest.append(lost)
    return np.array(fewest)


def rejections(name, n, tolerated, gained, drop, alpha, most=None):
    """Exact chance that a test at alpha calls a drop: a share `gained` is won, accuracy is down by `drop`."""
    fewest = fewest_lost(name, n, tolerated, alpha, most or int(n * gained + 6 * math.sqrt(n * gained)) + 4)
    won = np.arange(len(fewest))
    tails = stats.binom.sf(fewest - 1, n - won, (gained + drop) / (1 - gained))
    return (stats.binom.pmf(won, n, gained) * tails).sum()


@pytest.mark.parametrize("n", [50, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tolerated", [0, 0.02, 0.1])
def test_a_tolerated_drop_is_called_broken_in_at_most_alpha_of_cases(n, tolerated):
    shares = (0, 0.002, 0.005, 0.01, 0.02, 0.05)
    for alpha in (0.05, 0.0125):
        errors = {name: [rejections(name, n, tolerated, w, tolerated, alpha, n // 6) for w in shares] for name in TESTS}
        assert max(max(errors.values())) <= alpha
        assert max(errors["exact-score"]) > max(0.5 * alpha, max(errors["mcnemar-tolerated"]))


@pytest.mark.parametrize("tolerated", [0, 0.02])
@pytest.mark.parametrize("gained", [0, pytest.param(0.01, marks=pytest.mark.slow), 0.05])
@pytest.mark.parametrize(("alpha", "power"), [(0.0125, 0.8), pytest.param(0.05, 0.9, marks=pytest.mark.slow)])
def test_the_images_asked_for_give_the_power_stated_and_half_of_them_do_not(tolerated, gained, alpha, power):
    needed = images_needed(0.1, tolerated, gained, alpha, power)
    found = {name: rejections(name, needed, tolerated, gained, 0.1, alpha) for name in TESTS}
    assert found["exact-score"] > found["mcnemar-tolerated"] >= power
    assert rejections("exact-score", needed // 2, tolerated, gained, 0.1, alpha) < power


@pytest.mark.parametrize(("drop", "low", "high"), [(0.0, 0, 0), (0.02, 0, 0.05), (0.1, 0.9, 1)])
def test_simulated_checks_of_three_sets_fail_as_often_as_stated(drop, low, high):
    tables = np.random.default_rng(0).multinomial(300, [0.01 + drop, 0.01, 0.98 - drop], (400, 3))
    p_value = cache(lambda lost, gained: drop_p_value(int(lost), int(gained), 300, 0.02, 0.05 / 3))
    smallest = [min(holm([p_value(lost, gained) for lost, gained, _ in check])) for check in tables]
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


def test_the_page_s_chances_are_those_counted():
    page = (Path(__file__).resolve().parent.parent / "docs" / "checking.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (0\.\d+) \| (none|\d %) \| (.*) \|$", page, re.M)
    assert len(rows) > 3
    for n, alpha, gained, cells in rows:
        share, expected = 0 if gained == "none" else int(gained[0]) / 100, []
        for drop, places in ((0.02, 3), (0.06, 2)):
            expected += [f"{rejections(name, int(n), 0.02, share, drop, float(alpha)):.{places}f}"
                         for name in ("mcnemar-tolerated", "exact-score")]  # fmt: skip
        assert cells.split(" | ") == expected
    least = next(k for k in range(300) if stats.norm.sf(drop_score(k, 0, 300, 0.02)) <= 0.05)
    assert f"none gained: {stats.binom.sf(least - 1, 300, 0.02):.1%} at".replace("%", " %") in page
