"""Intervals over draws, against tables, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jointdiff.paired import gap_recovered, half_width_95, paired_difference, student_mean, student_quantile


def test_students_quantiles_are_those_of_the_tables():
    table = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 10: 2.22814, 30: 2.04227, 1000: 1.96234}
    assert {n: round(student_quantile(n), len(str(t).split(".")[1])) for n, t in table.items()} == table
    assert student_quantile(7, confidence=0.99) == pytest.approx(3.499483, abs=1e-6)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    draws = np.random.default_rng(3).normal(0.7, 0.1, (2000, 5))
    found = [student_mean(list(row)) for row in draws]
    share = np.mean([f.low < 0.7 < f.high for f in found])
    assert 0.935 < share < 0.965


def test_pairs_take_out_what_draws_have_in_common():
    luck = np.random.default_rng(0).normal(0, 0.2, 8)
    found = paired_difference(list(0.9 + luck), list(0.8 + luck + np.tile([-0.01, 0.01], 4)))
    assert found.value == pytest.approx(0.1) and found.clear_of_zero and found.high - found.low < 0.02
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])


def test_one_draw_has_a_mean_and_no_interval():
    found = student_mean([0.5])
    assert (found.value, found.low, found.high, found.n) == (0.5, None, None, 1) and not found.clear_of_zero
    assert half_width_95([0.5]) == math.inf


def test_the_gap_is_a_ratio_of_means_with_a_seeded_bootstrap():
    low, high = [0.80, 0.70, 0.78, 0.82], [0.95, 0.97, 0.96, 0.96]
    values = [0.90, 0.85, 0.85, 0.92]
    found = gap_recovered(values, low, high, seed=1)
    assert found.value == pytest.approx((np.mean(values) - np.mean(low)) / (np.mean(high) - np.mean(low)))
    assert found.low < found.value < found.high
    assert found == gap_recovered(values, low, high, seed=1)
    more = np.random.default_rng(0).normal(0.85, 0.05, 12)
    one, two = (gap_recovered(list(more), list(more - 0.1), [0.97] * 12, seed=seed) for seed in (1, 2))
    assert one.value == two.value and one.low != two.low
    # By hand: every one of the 4^4 resamples, equally likely.
    grids = np.stack(np.meshgrid(*[range(4)] * 4), -1).reshape(-1, 4)
    v, a, b = (np.array(x)[grids].mean(1) for x in (values, low, high))
    assert [found.low, found.high] == pytest.approx(np.quantile((v - a) / (b - a), [0.025, 0.975]), abs=0.01)


def test_a_gap_that_is_none_says_so():
    assert gap_recovered([0.8, 0.9], [0.9, 0.9], [0.9, 0.9], seed=0) is None
    crossing = gap_recovered([0.8, 0.8, 0.8], [0.7, 0.9, 0.7], [0.8, 0.8, 0.8], seed=0)
    assert crossing.value > 0 and crossing.low is None, "bounds that change places in resamples give no interval"
    assert gap_recovered([0.9, 0.9], [0.8, 0.8], [1.0, 1.0], seed=0).low is None
