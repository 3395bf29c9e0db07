"""Sparse histograms of scores, and the AUC and rates that follow from them. Pure numpy.

A score p in [0, 1] falls into one of `num_bins` bins of equal width on u(p) = asinh(logit(p) / 4): nearly linear in the
logit around p = 0.5, logarithmic far out, so that bins stay fine where scores are saturated. p = 0.5 is always an edge.
"""

from __future__ import annotations

import numpy as np

NUM_BINS = 2**30  # every float32 probability keeps a bin of its own
_SOFTNESS = 4.0
_MAX_U = float(np.arcsinh(746.0 / _SOFTNESS))  # the smallest float64 has logit -745


def check_num_bins(num_bins: int) -> None:
    """Raise ValueError unless `num_bins` is even and in 2..2**40."""
    if not 2 <= num_bins <= 2**40 or num_bins % 2:
        raise ValueError(f"The number of score bins must be even and between 2 and 2**40, not {num_bins}.")


def score_bin(probs: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Return the bin of every probability, int64 in 0..num_bins-1; a bin holds its upper edge.

    >>> score_bin(np.array([0.0, 0.5, 0.500001, 1.0]), 4096).tolist()
    [0, 2047, 2048, 4095]
    """
    probs = np.asarray(probs, np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(probs) - np.log1p(-probs)
    position = (np.arcsinh(logits / _SOFTNESS) / _MAX_U + 1) / 2 * num_bins
    return np.clip(np.ceil(position) - 1, 0, num_bins - 1).astype(np.int64)


def auc(
    negative_bins: np.ndarray, negative_counts: np.ndarray, positive_bins: np.ndarray, positive_counts: np.ndarray
) -> float | None:
    """Return the area under the ROC curve: P(positive above negative) + P(same bin) / 2.

    Args:
        negative_bins, positive_bins: Sorted bins that hold something, [M] each.
        negative_counts, positive_counts: How many scores each of them holds.

    Returns:
        None without positives or without negatives.
    """
    num_negatives, num_positives = int(negative_counts.sum()), int(positive_counts.sum())
    if not num_negatives or not num_positives:
        return None
    below = np.concatenate([[0], np.cumsum(negative_counts)])
    wins = below[np.searchsorted(negative_bins, positive_bins, side="left")]
    wins_and_ties = below[np.searchsorted(negative_bins, positive_bins, side="right")]
    twice_the_wins = (positive_counts * (wins + wins_and_ties).astype(np.float64)).sum()
    return float(twice_the_wins / 2 / num_negatives / num_positives)


def share_above(bins: np.ndarray, counts: np.ndarray, threshold: float, num_bins: int) -> float | None:
    """Return the share of scores above a threshold, exact where the threshold is a bin's edge; None without scores."""
    total = int(counts.sum())
    limit = score_bin(np.array(threshold), num_bins)
    return float(counts[bins > limit].sum() / total) if total else None
