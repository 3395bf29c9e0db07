"""Membership inference: can the model's scores tell a record that was trained on from one that was not?

Pure numbers, no model: scores in, where a higher score says "was trained on"; AUC, true-positive rate at a
false-positive rate, and their 95% intervals out. M members, N non-members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jointdiff.intervals import Estimate, auc_interval, wilson

MIN_RECORDS = 20  # fewer members or non-members: the intervals would span nearly everything
FALSE_POSITIVE_RATE = 0.01
MIN_PER_STRATUM = 5
_NUM_RESAMPLES = 2000
_Z = 1.959964  # of a 95% interval


@dataclass(frozen=True)
class Membership:
    """What one attack achieved. AUC 0.5 and a true-positive rate equal to the false-positive rate are guessing."""

    num_members: int
    num_nonmembers: int
    auc: Estimate
    true_positive_rate: Estimate
    false_positive_rate: float  # that was measured: the largest possible at or below the one that was asked for


def measure(
    members: np.ndarray,
    nonmembers: np.ndarray,
    *,
    false_positive_rate: float = FALSE_POSITIVE_RATE,
    rng: np.random.Generator,
) -> Membership:
    """Measure how well scores [M] of members and [N] of non-members part the two.

    Args:
        rng: Of the resampling behind one interval.

    Raises:
        ValueError: One side is empty, or a score is not finite.
    """
    members, nonmembers = np.asarray(members, np.float64), np.asarray(nonmembers, np.float64)
    if not len(members) or not len(nonmembers):
        raise ValueError(f"{len(members)} members and {len(nonmembers)} non-members cannot be told apart.")
    if not (np.isfinite(members).all() and np.isfinite(nonmembers).all()):
        raise ValueError("A score is NaN or infinite: has the training diverged?")
    rate, measured = true_positive_rate(members, nonmembers, false_positive_rate=false_positive_rate, rng=rng)
    return Membership(len(members), len(nonmembers), auc(members, nonmembers), rate, measured)


def auc(members: np.ndarray, nonmembers: np.ndarray) -> Estimate:
    """Estimate the area under the ROC curve with DeLong's variance (DeLong et al., Biometrics 44, 1988).

    Where the scores do not overlap at all that variance is 0: then the interval is `intervals.auc_interval`.

    >>> auc(np.array([3.0, 2.0]), np.array([1.0, 2.0])).value
    0.875
    """
    above, below = _share_below(members, nonmembers), 1 - _share_below(nonmembers, members)
    value = float(above.mean())
    if len(members) < 2 or len(nonmembers) < 2:
        return auc_interval(value, len(members), len(nonmembers))
    variance = above.var(ddof=1) / len(members) + below.var(ddof=1) / len(nonmembers)
    if variance == 0:
        return auc_interval(value, len(members), len(nonmembers))
    half = _Z * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def _share_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for every score the share of the others that lie below it, ties counted half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2 * len(ordered))


def true_positive_rate(
    members: np.ndarray, nonmembers: np.ndarray, *, false_positive_rate: float, rng: np.random.Generator
) -> tuple[Estimate, float]:
    """Estimate the share of members above the threshold that so few non-members pass.

    The interval is a bootstrap over both groups (the threshold moves too), never narrower than Wilson's for the members
    alone: the bootstrap of a share of 0 would be a point.

    Returns:
        The rate, and the false-positive rate that was measured: with fewer than 1 / false_positive_rate non-members it
        is 0, and the threshold is the highest non-member.
    """
    passed = math.floor(false_positive_rate * len(nonmembers) + 1e-9)  # so many non-members may lie above
    ordered = np.sort(members)

    def caught(threshold: np.ndarray) -> np.ndarray:
        return len(ordered) - np.searchsorted(ordered, threshold, "right")

    threshold = np.sort(nonmembers)[-passed - 1]
    hits = int(caught(threshold))
    drawn = np.sort(rng.choice(nonmembers, (_NUM_RESAMPLES, len(nonmembers))), axis=1)[:, -passed - 1]
    shares = rng.binomial(len(members), caught(drawn) / len(members)) / len(members)
    low, high = np.quantile(shares, [0.025, 0.975])
    alone = wilson(hits, len(members))
    rate = Estimate(alone.value, min(float(low), alone.low), max(float(high), alone.high))
    return rate, float((nonmembers > threshold).mean())


def calibrated(scores: np.ndarray, reference_scores: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Return how much more each record's score is than under the reference models that were not trained on it.

    With one such model per record this is difficulty calibration (Watson et al., ICLR 2022). With several it is the
    offline likelihood ratio of LiRA (Carlini et al., IEEE S&P 2022) with one variance for all records, which is what
    that paper advises for few reference models; dividing by it would change no ranking. A reference model that scores
    all its records higher or lower than another says nothing of any of them: the differences from each are centred over
    the records that it was not trained on, members or not.

    Args:
        scores: Of the model under attack, [N].
        reference_scores: [K,N].
        trained_on: bool [K,N], whether a reference model was trained on a record.

    Raises:
        ValueError: A record has no reference model that was not trained on it.
    """
    out = ~trained_on
    if not out.any(axis=0).all():
        raise ValueError("Every record needs a reference model that was not trained on it.")
    more = np.where(out, scores - reference_scores, 0.0)
    more = np.where(out, more - (more.sum(axis=1) / np.maximum(out.sum(axis=1), 1))[:, None], 0.0)
    return more.sum(axis=0) / out.sum(axis=0)


def same_mixture(
    strata_a: np.ndarray, strata_b: np.ndarray, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Thin out two sets until their classes have the same shares, so that no attack can win by telling classes apart.

    Kept labels are balanced over the classes, and held-out images are not. Classes with fewer than MIN_PER_STRATUM
    records on a side are left out; of `b` as many records per class are drawn as the shares of `a` allow.

    Args:
        strata_a, strata_b: Classes, int [A] and [B].

    Returns:
        Sorted rows of `a` and of `b`.
    """
    counts = {k: (int((strata_a == k).sum()), int((strata_b == k).sum())) for k in np.unique(strata_a)}
    counts = {k: pair for k, pair in counts.items() if min(pair) >= MIN_PER_STRATUM}
    factor = min((b / a for a, b in counts.values()), default=0.0)
    none = np.empty(0, dtype=np.int64)
    rows_a = [np.flatnonzero(strata_a == k) for k in counts]
    rows_b = [rng.permutation(np.flatnonzero(strata_b == k))[: round(factor * a)] for k, (a, _) in counts.items()]
    return np.sort(np.concatenate([none, *rows_a])), np.sort(np.concatenate([none, *rows_b]))


def true_positive_bound(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """Return the largest true-positive rate that (epsilon, delta)-DP allows at a false-positive rate.

    min(e^eps f + delta, 1 - e^-eps (1 - delta - f)) (Kairouz et al., ICML 2015).

    >>> true_positive_bound(0.0, 0.0, 0.01), round(true_positive_bound(1.0, 0.0, 0.01), 4)
    (0.01, 0.0272)
    """
    first = math.exp(min(epsilon, 700.0)) * false_positive_rate + delta  # beyond 700 a float overflows
    second = 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate)
    return max(0.0, min(first, second, 1.0))


def auc_bound(epsilon: float, delta: float) -> float:
    """Return the largest AUC that (epsilon, delta)-DP allows: the area under `true_positive_bound`.

    >>> auc_bound(0.0, 0.0), round(auc_bound(1.0, 0.0), 4)
    (0.5, 0.7311)
    """
    # The two branches meet at f = (1 - delta) / (1 + e^eps); the second reaches 1 at f = 1 - delta.
    meet = (1 - delta) * math.exp(-epsilon) / (1 + math.exp(-epsilon))
    first = delta * meet + (1 - delta) / (1 + math.exp(-epsilon)) * meet / 2
    second = (1 - meet) - math.exp(-epsilon) * (1 - delta - meet) ** 2 / 2
    return first + second
