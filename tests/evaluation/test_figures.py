"""Figures and their confidence intervals."""

import numpy as np
import pytest

from dps_hf.evaluation.figures import compute_wilson_interval, count_effective_items, mean, mean_of_runs, share


def test_wilson_interval_gives_the_published_figures():
    # Brown, Cai and DasGupta (2001) and any table: 8 of 10, and the ends, where the textbook's interval has no width
    assert compute_wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert compute_wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-3)
    assert compute_wilson_interval(20, 20) == pytest.approx((0.8389, 1), abs=1e-3)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"got {successes} and {n}"):
        compute_wilson_interval(successes, n)


def test_items_that_stand_and_fall_together_count_once():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 5)
    together, alone = (rng.random(200) < 0.3)[groups], rng.random(1000) < 0.3
    assert count_effective_items(together, groups) == pytest.approx(200 * 199 / 200)
    assert count_effective_items(alone, groups) == pytest.approx(1000, rel=0.1)
    assert count_effective_items(alone, range(1000)) == pytest.approx(1000, rel=0.01)


def test_the_variance_of_items_in_groups_is_what_repeated_trials_show():
    rng = np.random.default_rng(1)
    shares, found = [], []
    for _ in range(400):
        mood = rng.beta(3, 1, size=30)  # of each of 30 groups
        marks = rng.random((30, 10)) < mood[:, None]
        shares.append(marks.mean())
        found.append(count_effective_items(marks.ravel(), np.repeat(np.arange(30), 10)))
    promised = 0.75 * 0.25 / np.median(found)
    assert promised == pytest.approx(np.var(shares), rel=0.2)


def test_items_all_alike_or_of_one_group_are_counted_as_they_are():
    assert count_effective_items([True] * 6, [1, 1, 2, 2, 3, 3]) == 6
    assert count_effective_items([True, False], "aa") == 2


def test_share_and_mean_carry_their_uncertainty():
    assert share([True] * 10) == {"value": 1.0, "n": 10, "ci95": [0.7225, 1.0]}
    assert mean([1.0, 3.0]) == {"value": 2.0, "n": 2, "ci95": [0.04, 3.96]}
    assert mean([5.0]) == {"value": 5.0, "n": 1, "ci95": [5.0, 5.0]}


@pytest.mark.parametrize(("right", "n"), [(0, 5), (3, 7), (50, 100), (100, 100)])
def test_the_interval_of_whole_numbers_is_that_of_scipy(right, n):
    stats = pytest.importorskip("scipy.stats")
    level = 2 * stats.norm.cdf(1.96) - 1
    expected = stats.binomtest(right, n).proportion_ci(level, method="wilson")
    assert compute_wilson_interval(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_mean_of_few_runs_has_the_interval_of_students_t():
    pytest.importorskip("scipy")
    half = 4.3027 * np.std([0.1, 0.2, 0.6], ddof=1) / 3**0.5
    figure = mean_of_runs([0.1, 0.2, 0.6])
    assert (figure["value"], figure["n"]) == (0.3, 3)
    assert figure["ci95"] == pytest.approx([0.3 - half, 0.3 + half], abs=1e-4)


def test_one_run_has_no_interval():
    with pytest.raises(ValueError, match="2 runs or more, or there is no interval; got 1"):
        mean_of_runs([0.5])
