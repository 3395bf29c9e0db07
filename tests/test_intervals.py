"""Intervals against exact sums over all outcomes, brute-force variances, scikit-learn's AUC and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jointdiff.intervals import (
    Estimate,
    auc_interval,
    estimates,
    hanley_mcneil_variance,
    mean_of_disjoint,
    mean_of_overlapping,
    one_against_rest,
    recalls,
    wilson,
)
from jointdiff.statistics import ClassificationStatistics

Z = 1.959963984540054


@pytest.mark.parametrize(("hits", "total"), [(0, 7), (1, 30), (15, 30), (199, 200), (12, 12)])
def test_wilson_limits_are_the_values_that_a_score_test_just_accepts(hits: int, total: int) -> None:
    found = wilson(hits, total)
    assert found.value == hits / total and 0 <= found.low <= found.value <= found.high <= 1
    for limit in (found.low, found.high):
        if 0 < limit < 1:
            assert abs(found.value - limit) / math.sqrt(limit * (1 - limit) / total) == pytest.approx(Z)
        else:
            assert limit == found.value  # only an extreme share reaches 0 or 1


@pytest.mark.parametrize("total", [20, 100])
def test_wilson_covers_the_truth_as_often_as_it_says_summed_over_all_outcomes(total: int) -> None:
    limits = [wilson(k, total) for k in range(total + 1)]
    coverage = []
    for p in np.linspace(0.02, 0.98, 97):
        chance = [math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(total + 1)]
        coverage.append(sum(c for c, e in zip(chance, limits, strict=True) if e.low <= p <= e.high))
    assert abs(np.mean(coverage) - 0.95) < 0.01 and min(coverage) > 0.83


@pytest.mark.parametrize(("hits", "total"), [(3, 2), (-1, 2), (0, 0)])
def test_what_is_no_proportion_is_refused(hits: int, total: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(hits, total)


def test_a_mean_of_disjoint_groups_covers_the_truth_summed_over_all_outcomes() -> None:
    sizes, truths = (15, 40), (0.9, 0.6)
    covered = 0.0
    for a in range(sizes[0] + 1):
        for b in range(sizes[1] + 1):
            counts = zip((a, b), sizes, truths, strict=True)
            chance = math.prod(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k, n, p in counts)
            found = mean_of_disjoint([wilson(a, sizes[0]), wilson(b, sizes[1])])
            covered += chance * (found.low <= 0.75 <= found.high)
    assert covered == pytest.approx(0.95, abs=0.02)


def test_means_of_equal_parts_shrink_only_where_the_groups_are_disjoint() -> None:
    part = Estimate(0.5, 0.4, 0.6)
    overlapping, disjoint = mean_of_overlapping([part] * 4), mean_of_disjoint([part] * 4)
    assert (overlapping.low, overlapping.high) == pytest.approx((0.4, 0.6))
    assert (disjoint.low, disjoint.high) == pytest.approx((0.45, 0.55))


@pytest.mark.parametrize("auc", [0.6, 0.85, 0.97])
def test_hanley_mcneil_is_the_variance_of_the_auc_of_exponential_scores(auc: float) -> None:
    rng = np.random.default_rng(0)
    num_positive, num_negative, repeats = 12, 20, 20_000
    positive = rng.exponential(1 / (1 - auc), (repeats, num_positive, 1))
    negative = rng.exponential(1 / auc, (repeats, 1, num_negative))
    found = (positive > negative).mean((1, 2))
    assert found.mean() == pytest.approx(auc, abs=0.005)
    assert found.var() == pytest.approx(hanley_mcneil_variance(auc, num_positive, num_negative), rel=0.05)


@pytest.mark.parametrize(("distance", "counts"), [(0.5, (30, 30)), (1.5, (20, 60)), (2.5, (50, 50)), (3.5, (40, 40))])
def test_the_auc_interval_covers_the_truth_of_normal_scores_even_near_one(
    distance: float, counts: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    truth = 0.5 * (1 + math.erf(distance / 2))
    positive = rng.normal(distance, 1, (1500, counts[0], 1))
    aucs = (positive > rng.normal(0, 1, (1500, 1, counts[1]))).mean((1, 2))
    found = [auc_interval(float(a), *counts) for a in aucs]
    coverage = np.mean([e.low <= truth <= e.high for e in found])
    assert 0.93 <= coverage <= 0.995
    if distance == 3.5:  # where plain AUC +- 1.96 SE fails: many draws have AUC 1 and a variance of 0
        plain = [abs(a - truth) <= Z * math.sqrt(hanley_mcneil_variance(a, *counts)) for a in aucs]
        assert np.mean(plain) < 0.9


def test_the_auc_interval_is_a_score_interval_symmetric_in_the_classes_and_narrower_with_more_images() -> None:
    found, turned = auc_interval(0.8, 30, 70), auc_interval(0.2, 70, 30)
    assert (1 - turned.high, 1 - turned.low) == pytest.approx((found.low, found.high))
    even = auc_interval(0.8, 50, 50)
    for limit in (even.low, even.high):  # with equal counts V is Hanley and McNeil's own
        assert abs(0.8 - limit) == pytest.approx(Z * math.sqrt(hanley_mcneil_variance(limit, 50, 50)))
    many = auc_interval(0.8, 300, 700)
    assert found.low < many.low < 0.8 < many.high < found.high
    assert auc_interval(1.0, 5, 5).high == 1.0 and 0.5 < auc_interval(1.0, 5, 5).low < 0.8
    assert auc_interval(0.8, 30, 70, confidence=0.5).low > found.low


@pytest.mark.parametrize("arguments", [(0.5, 0, 3), (0.5, 3, 0), (1.5, 3, 3), (float("nan"), 3, 3)])
def test_what_is_no_auc_is_refused(arguments: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError, match="has no interval"):
        auc_interval(*arguments)


@pytest.mark.parametrize(("task", "k"), [("multi-class", 2), ("multi-class", 4), ("multi-label", 3)])
def test_the_values_are_those_of_the_metrics_and_lie_inside_their_limits(task: str, k: int) -> None:
    rng = np.random.default_rng(k)
    if task == "multi-label":
        labels = rng.integers(0, 2, (90, k))
        probs = np.clip(0.5 * labels + rng.uniform(0, 0.6, (90, k)), 0, 1)
    else:
        labels = rng.integers(0, k, 90)
        probs = np.eye(k)[labels] + rng.uniform(0, 2, (90, k))
        probs /= probs.sum(1, keepdims=True)
    metrics = ClassificationStatistics.from_predictions(probs, labels, task=task).finish()
    found = estimates(metrics, task)
    assert list(found) == ["auc", "balanced_accuracy", "accuracy"]
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(metrics[name]), name
        assert estimate.low < estimate.value < estimate.high, name
    if k == 2:
        assert found["auc"] == auc_interval(metrics["auc"], int(labels.sum()), int((labels == 0).sum()))
        assert metrics["auc"] == pytest.approx(roc_auc_score(labels, probs[:, 1]))
        (negative, positive) = recalls(metrics, task)
        assert (positive[0].value, positive[1].value) == pytest.approx((metrics["sensitivity"], metrics["specificity"]))
        assert negative == positive[::-1]
    if task == "multi-label":
        shares = np.array([[pair[0].value, pair[1].value] for pair in recalls(metrics, task)])
        assert shares.mean(0) == pytest.approx([metrics["sensitivity"], metrics["specificity"]])


def test_a_class_without_images_is_left_out_and_gaps_are_no_error() -> None:
    labels = np.array([0, 1] * 10)
    probs = np.full((20, 3), 0.2) + 0.4 * np.eye(3)[labels]
    metrics = ClassificationStatistics.from_predictions(probs, labels, task="multi-class").finish()
    found = estimates(metrics, "multi-class")
    assert metrics["auc_num_skipped"] == 1 and found["auc"] == auc_interval(1.0, 10, 10)
    assert found["balanced_accuracy"] == mean_of_disjoint([wilson(10, 10)] * 2)
    assert recalls(metrics, "multi-class")[2] == (None, wilson(20, 20))
    nobody = ClassificationStatistics.from_predictions(np.zeros((0, 2)), np.zeros(0, int), task="multi-class").finish()
    assert estimates(nobody, "multi-class") == {} == estimates({}, "multi-class")
    assert set(estimates({"confusion_matrix": [[1, 0], [0, 1]]}, "multi-class")) == {"balanced_accuracy", "accuracy"}
    one_sided = {"confusion_matrix": [[3, 0], [0, 0]], "auc_per_class": [0.5]}  # no positives, whatever the file claims
    assert set(estimates(one_sided, "multi-class")) == {"balanced_accuracy", "accuracy"}
    assert one_against_rest({"confusion_matrix": [[[1, 2], [3, 4]]]}, "multi-label") == [((1, 2), (3, 4))]
