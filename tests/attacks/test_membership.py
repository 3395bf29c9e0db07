"""The numbers behind membership: by definition, with intervals that hold what they promise, and the theory's bound."""

from __future__ import annotations

import numpy as np
import pytest

from jointdiff.attacks.membership import (
    auc,
    auc_bound,
    calibrated,
    measure,
    same_mixture,
    true_positive_bound,
    true_positive_rate,
)
from jointdiff.intervals import wilson


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_auc_by_its_definition_with_ties() -> None:
    members, nonmembers = rng(1).integers(0, 6, 17), rng(2).integers(0, 5, 23)
    wins = (members[:, None] > nonmembers).mean() + 0.5 * (members[:, None] == nonmembers).mean()
    assert auc(members, nonmembers).value == pytest.approx(wins)
    assert auc(nonmembers, members).value == pytest.approx(1 - wins)


def test_the_variance_is_delongs() -> None:
    """Against the definition: variances of the placements of each group among the other."""
    members, nonmembers = rng(3).normal(0.5, 1, 30), rng(4).normal(0, 1, 20)
    wins = (members[:, None] > nonmembers).astype(float)
    variance = wins.mean(axis=1).var(ddof=1) / 30 + wins.mean(axis=0).var(ddof=1) / 20
    found = auc(members, nonmembers)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * variance**0.5)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_of_auc_holds_the_truth_19_times_of_20(shift: float) -> None:
    draws = rng(5)
    truth = 0.5 if shift == 0 else 0.7602
    found = [auc(draws.normal(shift, 1, 60), draws.normal(0, 1, 40)) for _ in range(600)]
    assert 0.92 < np.mean([e.low <= truth <= e.high for e in found]) < 0.98


def test_groups_apart_leave_room_for_doubt() -> None:
    found = auc(np.arange(10, 30), np.arange(10))
    assert (found.value, found.high) == (1.0, 1.0) and 0.7 < found.low < 0.95
    assert auc(np.array([1.0]), np.array([0.0])).low < 0.5


def test_the_rate_at_few_false_alarms() -> None:
    nonmembers = np.arange(200.0)
    members = np.concatenate([np.full(30, 198.5), np.full(10, 197.5), np.full(60, 0.5)])
    rate, measured = true_positive_rate(members, nonmembers, false_positive_rate=0.01, rng=rng())
    assert (rate.value, measured) == (0.4, 0.01)  # two of 200 may pass: above 197
    assert rate.low <= wilson(40, 100).low and rate.high >= wilson(40, 100).high
    rate, measured = true_positive_rate(members, nonmembers[:50], false_positive_rate=0.01, rng=rng())
    assert (rate.value, measured) == (0.4, 0.0)  # of 50 none may


def test_none_and_all_caught_leave_room_for_doubt() -> None:
    nonmembers = np.arange(100.0)
    nobody, _ = true_positive_rate(np.full(30, -1.0), nonmembers, false_positive_rate=0.01, rng=rng())
    everybody, _ = true_positive_rate(np.full(30, 200.0), nonmembers, false_positive_rate=0.01, rng=rng())
    assert (nobody.value, nobody.low) == (0, 0) and nobody.high == wilson(0, 30).high > 0.1
    assert (everybody.value, everybody.high) == (1, 1) and everybody.low == wilson(30, 30).low < 0.9


def test_without_a_difference_the_rate_is_the_false_positive_rate() -> None:
    draws = rng(6)
    found = [measure(draws.normal(size=200), draws.normal(size=200), rng=draws).true_positive_rate for _ in range(80)]
    assert np.mean([e.value for e in found]) == pytest.approx(0.0125, abs=0.006)
    assert np.mean([e.low <= 0.01 <= e.high for e in found]) > 0.93


def test_calibration_removes_what_is_merely_easy() -> None:
    draws = rng(7)
    difficulty = draws.normal(0, 5, 200)
    member = np.arange(200) < 100
    scores = difficulty + 1.0 * member + draws.normal(0, 0.3, 200)
    trained_on = np.stack([half := draws.random(200) < 0.5, ~half, other := draws.random(200) < 0.5, ~other])
    offsets = np.array([[0.0], [8.0], [-8.0], [3.0]])  # one model is better than another, for all records alike
    references = difficulty + offsets + 3.0 * trained_on + draws.normal(0, 0.3, (4, 200))
    better = calibrated(scores, references, trained_on)
    assert auc(scores[member], scores[~member]).value < 0.7 < 0.95 < auc(better[member], better[~member]).value
    level = [(scores - r)[~known].mean() for r, known in zip(references, trained_on, strict=True)]
    own = [np.mean([scores[i] - references[k, i] - level[k] for k in range(4) if not trained_on[k, i]])
           for i in range(200)]  # fmt: skip
    np.testing.assert_allclose(better, own, atol=1e-9)
    with pytest.raises(ValueError, match="not trained on it"):
        calibrated(scores, references[:1], trained_on[:1])


def test_both_sides_get_the_same_mixture_of_classes() -> None:
    a, b = np.repeat([0, 1, 2], [20, 20, 3]), np.repeat([0, 1, 2], [90, 30, 40])
    rows_a, rows_b = same_mixture(a, b, rng=rng())
    assert np.bincount(a[rows_a]).tolist() == [20, 20] and np.bincount(b[rows_b]).tolist() == [30, 30]
    assert len(set(rows_b)) == 60 and (np.diff(rows_b) > 0).all()
    rows_a, rows_b = same_mixture(np.array([0, 0]), np.array([1, 1]), rng=rng())
    assert not len(rows_a) and not len(rows_b)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 1e-4), (3.0, 0.01), (8.0, 1e-5), (900.0, 0.0)])
def test_the_bound_is_that_of_the_theory(epsilon: float, delta: float) -> None:
    rates = np.linspace(0, 1, 200_001)
    bounds = np.array([true_positive_bound(epsilon, delta, f) for f in rates])
    assert auc_bound(epsilon, delta) == pytest.approx(np.trapezoid(bounds, rates), abs=1e-4)
    assert (bounds >= rates - 1e-12).all() and (np.diff(bounds) >= -1e-12).all() and bounds[-1] == 1
    small = rates < 1e-3
    if epsilon < 5:
        np.testing.assert_allclose(bounds[small], np.exp(epsilon) * rates[small] + delta)


def test_randomised_response_reaches_the_bound() -> None:
    """Telling the truth with probability e^eps / (1 + e^eps) is eps-DP, and no mechanism leaks more."""
    truth = np.exp(2.0) / (1 + np.exp(2.0))
    assert true_positive_bound(2.0, 0.0, 1 - truth) == pytest.approx(truth)


def test_nothing_to_compare_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="0 members"):
        measure(np.zeros(0), np.zeros(3), rng=rng())
    with pytest.raises(ValueError, match="NaN"):
        measure(np.array([np.nan]), np.zeros(3), rng=rng())
