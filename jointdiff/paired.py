"""Means, paired differences and ratios over repeated draws, with 95% intervals. Pure: math and numpy only.

A draw is one repetition of an experiment: another split of the labels, another seed. What is compared on the same
draws is compared in pairs, which takes out how lucky the draw was. n draws give

    d_i = a_i - b_i,   mean(d) +- t(n - 1) sd(d) / sqrt(n)         Student's interval (Student 1908)

A share of a gap, (mean(a) - mean(low)) / (mean(high) - mean(low)), is a ratio of means that hang together; its
interval is the percentile bootstrap over whole draws (Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 4000
_BISECTIONS = 80


@dataclass(frozen=True)
class Interval:
    """A number over n draws and the limits of its 95% interval; None where so few draws tell nothing."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def clear_of_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def student_mean(values: Sequence[float]) -> Interval:
    """Return the mean of n values and Student's interval; one value has none.

    Raises:
        ValueError: No value.

    >>> found = student_mean([1.0, 2.0, 3.0])
    >>> found.value, round(found.low, 2), round(found.high, 2)
    (2.0, -0.48, 4.48)
    """
    if not len(values):
        raise ValueError("The mean of no values is not defined.")
    mean, half = float(np.mean(values)), half_width_95(values)
    if not math.isfinite(half):
        return Interval(mean, None, None, len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def half_width_95(values: Sequence[float]) -> float:
    """Return half the width of the 95% confidence interval of a mean (Student's t); infinite for one value.

    >>> round(half_width_95([1.0, 2.0, 3.0]), 2)
    2.48
    """
    n = len(values)
    if n < 2:
        return math.inf
    return student_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)


def student_quantile(degrees: int, *, confidence: float = CONFIDENCE) -> float:
    """Return t such that Student's variable lies within +-t with this probability, by bisection.

    The probability has a finite sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Raises:
        ValueError: Fewer than one degree of freedom.

    >>> round(student_quantile(9), 3), round(student_quantile(1), 3)
    (2.262, 12.706)
    """
    if degrees < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, not {degrees}.")
    low, high = 0.0, math.pi / 2  # of the angle: t = sqrt(degrees) tan(angle)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _student_within(angle: float, degrees: int) -> float:
    """Return the probability of |t| <= sqrt(degrees) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):  # k = 2, 4, ... where odd, 1, 3, ... where even
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def paired_difference(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Return the mean of one - other over pairs, with Student's interval.

    >>> paired_difference([0.9, 0.94], [0.8, 0.8]).n
    2
    """
    return student_mean([a - b for a, b in zip(one, other, strict=True)])


def gap_recovered(
    values: Sequence[float], low: Sequence[float], high: Sequence[float], *, seed: int
) -> Interval | None:
    """Return the share of the gap between two bounds that a method recovers, in ratios of means over the same draws.

    Args:
        values, low, high: Of the method, the lower and the upper bound, in the same order of draws, [n].
        seed: Of the resampling.

    Returns:
        (mean(values) - mean(low)) / (mean(high) - mean(low)) with its bootstrap interval: none for fewer than three
        draws, or where in more than one resample of forty the bounds change places. None where they have no gap.

    >>> gap_recovered([0.9, 0.9], [0.8, 0.8], [1.0, 1.0], seed=0).value
    0.5
    """
    table = np.array([values, low, high], np.float64)
    n = table.shape[1]
    means = table.mean(axis=1)
    if not means[2] > means[1]:
        return None
    share = float((means[0] - means[1]) / (means[2] - means[1]))
    if n < 3:
        return Interval(share, None, None, n)
    drawn = table[:, np.random.default_rng(seed).integers(0, n, (NUM_RESAMPLES, n))].mean(axis=2)  # [3, resamples]
    gaps = drawn[2] - drawn[1]
    if (gaps > 0).mean() < 1 - (1 - CONFIDENCE) / 2:
        return Interval(share, None, None, n)
    shares = ((drawn[0] - drawn[1]) / np.where(gaps > 0, gaps, np.nan))[gaps > 0]
    tail = (1 - CONFIDENCE) / 2
    below, above = np.quantile(shares, [tail, 1 - tail])
    return Interval(share, float(below), float(above), n)
