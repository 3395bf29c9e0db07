"""Choose which labels are kept; all others are hidden. Pure.

N images, H hospitals, K strata (see `partition.strata_of`).
"""

from __future__ import annotations

import numpy as np

from jointdiff.data.partition import set_aside
from jointdiff.errors import ConfigError

HELDOUT_FRACTION = 0.2
MIN_PER_CLASS = 10  # fewer kept labels per class than this: none is held out


def kept_labels(
    strata: np.ndarray, shares: list[np.ndarray], num_labels: int, *, num_classes: int, seed: int
) -> list[np.ndarray]:
    """Choose the images whose label is kept, as even as possible per class and, within a class, per hospital.

    Args:
        strata: int [N], the class of each image, -1 = unknown (never chosen).
        shares: H arrays of indices, the images of each hospital.
        num_labels: Labels kept in all hospitals together; 0 = all.
        num_classes: The least that makes sense.
        seed: Which images these are.

    Returns:
        H sorted arrays of indices, parts of `shares`.

    Raises:
        ConfigError: `num_labels` is larger than the set, or smaller than the number of classes.
    """
    known = [share[strata[share] >= 0] for share in shares]
    available = sum(map(len, known))
    if num_labels == 0:
        return [np.sort(share) for share in known]
    if num_labels > available:
        raise ConfigError(
            f"num-labels is {num_labels}, but the training set has {available} labelled images: "
            f"take at most {available}, or 0 for all."
        )
    if num_labels < num_classes:
        raise ConfigError(
            f"num-labels is {num_labels}, but there are {num_classes} classes and each needs a label: "
            f"take at least {num_classes}, or 0 for all."
        )
    rng = np.random.default_rng([seed, 11])
    num_strata = int(strata.max()) + 1
    piles = [[rng.permutation(share[strata[share] == k]) for share in known] for k in range(num_strata)]
    counts = _even_counts(np.array([[len(pile) for pile in row] for row in piles]), num_labels, rng)
    return [
        np.sort(np.concatenate([piles[k][hospital][: counts[k, hospital]] for k in range(num_strata)]))
        for hospital in range(len(shares))
    ]


def _even_counts(available: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Share `total` out over the cells of `available` [K, H]: evenly over classes, then over hospitals."""
    counts = np.zeros_like(available)
    luck = rng.permutation(available.size).reshape(available.shape)  # breaks ties, differently for every seed
    for _ in range(total):
        free = np.argwhere(counts < available)
        keys = (
            luck[free[:, 0], free[:, 1]],
            counts.sum(axis=0)[free[:, 1]],
            counts[free[:, 0], free[:, 1]],
            counts.sum(axis=1)[free[:, 0]],
        )
        k, hospital = free[np.lexsort(keys)[0]]
        counts[k, hospital] += 1
    return counts


def heldout_labels(strata: np.ndarray, kept: list[np.ndarray], *, num_classes: int, seed: int) -> list[np.ndarray]:
    """Choose the kept labels that are held out to find the best round: about a fifth per class and hospital.

    Args:
        strata: int [N].
        kept: H arrays of indices from `kept_labels`.
        num_classes: K of the task.

    Returns:
        H sorted arrays, parts of `kept`; all empty when a class has fewer than MIN_PER_CLASS kept labels overall.
    """
    everywhere = strata[np.concatenate(kept)]
    if min(np.bincount(everywhere, minlength=num_classes)[:num_classes]) < MIN_PER_CLASS:
        return [np.empty(0, dtype=np.int64) for _ in kept]
    rng = np.random.default_rng([seed, 13])
    return [set_aside(strata, indices, HELDOUT_FRACTION, rng) for indices in kept]
