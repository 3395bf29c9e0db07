"""95% intervals of a classifier's metrics, in closed form from the counts in its metrics. Pure: math only.

They say how far a number may be off because other evaluation images could have been drawn from the same source, one
image independent of the other. They say nothing about another training seed, draw of the labels, or hospital.

- A proportion (accuracy, a recall): Wilson's score interval (Wilson 1927).
- A mean over disjoint groups of images (balanced accuracy): square-and-add of the groups' Wilson intervals (Newcombe
  1998; Zou and Donner 2008).
- AUC: the score interval on the Hanley-McNeil variance, method 5 of Newcombe, *Confidence intervals for an effect size
  measure based on the Mann-Whitney statistic, part 2*, Stat. Med. 25 (2006). Hanley and McNeil's own interval is
  AUC +- 1.96 SE, which leaves [0, 1] and shrinks to a point at AUC 1; this one does neither.
- A mean over numbers from the same images (AUC over several classes, anything over labels): the mean of the limits.
  That is right where the numbers rise and fall together, and too wide elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

CONFIDENCE = 0.95
_BISECTIONS = 60  # halves [0, 1] down to what a float can tell apart


@dataclass(frozen=True)
class Estimate:
    """A number between 0 and 1 with the limits of its interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, total: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate a proportion, p = successes / total, by the set of q with |p - q| <= z sqrt(q (1 - q) / total).

    Raises:
        ValueError: No trial, or more successes than trials.

    >>> estimate = wilson(0, 10)
    >>> estimate.low, round(estimate.high, 4)
    (0.0, 0.2775)
    >>> [round(limit, 4) for limit in (wilson(81, 263).low, wilson(81, 263).high)]  # an example of Newcombe's
    [0.2553, 0.3662]
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"{successes} of {total} is no proportion.")
    z2 = _z(confidence) ** 2
    p = successes / total
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (p * (1 - p) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    # At 0 and 1 the limit is exact in the formula, but not in floats.
    return Estimate(p, 0.0 if successes == 0 else centre - half, 1.0 if successes == total else centre + half)


def mean_of_disjoint(parts: Sequence[Estimate]) -> Estimate:
    """Estimate the mean of independent numbers, each from images of its own: low = mean - sqrt(sum (p - l)^2) / K.

    >>> mean_of_disjoint([wilson(5, 10)]) == wilson(5, 10)
    True
    """
    mean, k = _mean(parts), len(parts)
    low = mean - math.hypot(*(part.value - part.low for part in parts)) / k
    high = mean + math.hypot(*(part.high - part.value for part in parts)) / k
    return Estimate(mean, max(low, 0.0), min(high, 1.0))


def mean_of_overlapping(parts: Sequence[Estimate]) -> Estimate:
    """Estimate the mean of numbers from the same images: the mean of their limits, which allows for any dependence."""
    k = len(parts)
    return Estimate(_mean(parts), sum(part.low for part in parts) / k, sum(part.high for part in parts) / k)


def hanley_mcneil_variance(auc: float, num_positive: int, num_negative: int) -> float:
    """Return the variance of an estimated AUC (Hanley and McNeil, Radiology 143, 1982).

    With Q1 = A / (2 - A) and Q2 = 2 A^2 / (1 + A): (A (1 - A) + (P - 1)(Q1 - A^2) + (N - 1)(Q2 - A^2)) / (P N). Exact
    where the scores of positives and negatives follow exponential distributions, those of the positives the wider one.

    >>> round(hanley_mcneil_variance(0.893, 51, 58) ** 0.5, 4)  # the paper's example
    0.0325
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (num_positive - 1) * (q1 - auc**2) + (num_negative - 1) * (q2 - auc**2)
    return (auc * (1 - auc) + spread) / (num_positive * num_negative)


def auc_interval(auc: float, num_positive: int, num_negative: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate an AUC by the set of B with |AUC - B| <= z sqrt(V(B)).

    V is `hanley_mcneil_variance` with both counts in the brackets replaced by their mean, so that exchanging the
    classes turns the interval over and changes nothing else. At AUC 1 the lower limit stays below 1.

    Raises:
        ValueError: No positive or no negative image, or an AUC outside [0, 1].

    >>> estimate = auc_interval(1.0, 100, 100)
    >>> round(estimate.low, 3), estimate.high
    (0.98, 1.0)
    """
    if num_positive < 1 or num_negative < 1 or not 0 <= auc <= 1:
        raise ValueError(f"An AUC of {auc} with {num_positive} positives and {num_negative} negatives has no interval.")
    z2, others = _z(confidence) ** 2, (num_positive + num_negative) / 2 - 1

    def outside(b: float) -> bool:
        variance = b * (1 - b) * (1 + others * ((1 - b) / (2 - b) + b / (1 + b))) / (num_positive * num_negative)
        return (auc - b) ** 2 > z2 * variance

    return Estimate(auc, _border(outside, 0.0, auc), _border(outside, 1.0, auc))


def estimates(metrics: Mapping[str, Any], task: str) -> dict[str, Estimate]:
    """Return auc, balanced_accuracy and accuracy with intervals; what the counts do not allow is left out.

    Args:
        metrics: What `jointdiff.metrics.finish` returned; a gap is no error.
        task: multi-class | multi-label.
    """
    tables = one_against_rest(metrics, task)
    if not tables:
        return {}
    found: dict[str, Estimate] = {}
    multi_label = task == "multi-label"
    aucs = list(metrics.get("auc_per_class") or [])
    sides = [(hit + miss, rest + alarm) for (rest, alarm), (miss, hit) in tables]
    own = [
        auc_interval(a, *side)
        for a, side in zip(aucs, sides[len(sides) - len(aucs) :], strict=True)
        if a is not None and all(side)
    ]
    if own:
        found["auc"] = mean_of_overlapping(own)
    pairs = recalls(metrics, task)
    if multi_label:
        balanced = [mean_of_disjoint([sens, spec]) for sens, spec in pairs if sens and spec]
        hits = [wilson(rest + hit, rest + alarm + miss + hit) for (rest, alarm), (miss, hit) in tables]
    else:
        balanced = [sens for sens, _ in pairs if sens]
        total = sum(sides[0])
        hits = [wilson(sum(hit for _, (_, hit) in tables), total)]
    if balanced:
        found["balanced_accuracy"] = (mean_of_overlapping if multi_label else mean_of_disjoint)(balanced)
    found["accuracy"] = mean_of_overlapping(hits)
    return found


def recalls(metrics: Mapping[str, Any], task: str) -> list[tuple[Estimate | None, Estimate | None]]:
    """Return, for every class or label, the share found among its images and the share passed over among the others."""

    def share(right: int, wrong: int) -> Estimate | None:
        return wilson(right, right + wrong) if right + wrong else None

    return [(share(hit, miss), share(rest, alarm)) for (rest, alarm), (miss, hit) in one_against_rest(metrics, task)]


Table = tuple[tuple[int, int], tuple[int, int]]


def one_against_rest(metrics: Mapping[str, Any], task: str) -> list[Table]:
    """Return for every class or label ((rest, false alarms), (misses, hits)); [] where the counts are missing or zero.

    >>> one_against_rest({"confusion_matrix": [[3, 1], [2, 4]]}, "multi-class")
    [((4, 2), (1, 3)), ((3, 1), (2, 4))]
    """
    confusion = metrics.get("confusion_matrix")
    if not isinstance(confusion, list) or not confusion:
        return []
    if task == "multi-label":
        tables = [((int(t[0][0]), int(t[0][1])), (int(t[1][0]), int(t[1][1]))) for t in confusion]
    else:
        total, tables = sum(map(sum, confusion)), []
        for k, row in enumerate(confusion):
            hits, positives, decided = int(row[k]), int(sum(row)), int(sum(r[k] for r in confusion))
            tables.append(((int(total) - positives - decided + hits, decided - hits), (positives - hits, hits)))
    return tables if sum(map(sum, tables[0])) else []


def _border(outside: Callable[[float], bool], far: float, near: float) -> float:
    """Return the last point from `near` (inside) towards `far` that is not outside."""
    if not outside(far):
        return far
    for _ in range(_BISECTIONS):
        middle = (far + near) / 2
        far, near = (middle, near) if outside(middle) else (far, middle)
    return near


def _mean(parts: Sequence[Estimate]) -> float:
    return sum(part.value for part in parts) / len(parts)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
