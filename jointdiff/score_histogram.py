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


Cells = tuple[np.ndarray, np.ndarray, np.ndarray]  # [M] each, sorted by the first: first bin, last bin, count


def auc(negatives: Cells, positives: Cells) -> tuple[float | None, float | None]:
    """Return the area under the ROC curve, P(positive above negative) + P(undecided) / 2, and how far it can be off.

    A pair whose cells overlap is undecided: the scores themselves may stand either way round, or be equal. Half the
    mass of such pairs is therefore an exact bound of the error that the binning makes: the area of the unbinned scores
    lies within it.

    Args:
        negatives, positives: Cells that hold something. A cell is one bin, or several that were merged.

    Returns:
        (None, None) without positives or without negatives.

    >>> auc((np.array([3, 5]), np.array([3, 5]), np.array([2, 2])), (np.array([5]), np.array([6]), np.array([4])))
    (0.75, 0.25)
    """
    first, last, counts = negatives
    num_negatives, num_positives = int(counts.sum()), int(positives[2].sum())
    if not num_negatives or not num_positives:
        return None, None
    order = np.argsort(last, kind="stable")
    below = np.concatenate([[0], np.cumsum(counts[order])])[np.searchsorted(last[order], positives[0], side="left")]
    up_to = np.concatenate([[0], np.cumsum(counts)])[np.searchsorted(first, positives[1], side="right")]
    twice_the_wins = (positives[2] * (below + up_to).astype(np.float64)).sum()
    undecided = (positives[2] * (up_to - below).astype(np.float64)).sum()
    pairs = num_negatives * num_positives
    return float(twice_the_wins / 2 / num_negatives / num_positives), float(undecided / 2 / pairs)


def share_above(cells: Cells, threshold: float, num_bins: int) -> float | None:
    """Return the share of scores above a threshold, exact where the threshold is a bin's edge.

    None without scores, and where a cell of merged bins holds scores on both sides.
    """
    first, last, counts = cells
    total = int(counts.sum())
    limit = score_bin(np.array(threshold), num_bins)
    if not total or ((first <= limit) & (last > limit)).any():
        return None
    return float(counts[first > limit].sum() / total)
