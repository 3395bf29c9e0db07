"""Choose which labels are kept; all others are hidden. Pure.

N images, H hospitals, K strata (see `partition.strata_of`).
"""

from __future__ import annotations

import numpy as np

from jointdiff.data.partition import set_aside
from jointdiff.errors import ConfigError
from jointdiff.settings import label_split_of

HELDOUT_FRACTION = 0.2
MIN_HELDOUT = 10  # held-out labels of the rarest class: fewer would choose a round by luck, and cost training labels


def kept_labels(
    strata: np.ndarray, shares: list[np.ndarray], num_labels: int, *, num_classes: int, seed: int, split: str = "even"
) -> list[np.ndarray]:
    """Choose the images whose label is kept: as even as possible per class, and within a class as the split says.

    Args:
        strata: int [N], the class of each image, -1 = unknown (never chosen).
        shares: H arrays of indices, the images of each hospital.
        num_labels: Labels kept in all hospitals together; 0 = all that the split lets a hospital keep.
        num_classes: The least that makes sense.
        seed: Which images these are, and with `dirichlet` whose.
        split: `even` (a class's labels alike in every hospital), `dirichlet:ALPHA` (hospitals hold shares of all labels
            that are drawn from a Dirichlet distribution), `hospitals:K` (the first K hold them, evenly), or `server`
            (taken evenly from the hospitals, for the server to hold).

    Returns:
        H sorted arrays of indices, parts of `shares`.

    Raises:
        ConfigError: `num_labels` is larger than what there is, or smaller than the number of classes; or no hospital
            that may keep labels has an image of some class.
    """
    setting = label_split_of(split)
    holders = setting.count if setting.name == "hospitals" else len(shares)
    known = [share[(strata[share] >= 0) & (hospital < holders)] for hospital, share in enumerate(shares)]
    available = sum(map(len, known))
    where = "the training set has" if holders == len(shares) else f"the first {holders} hospitals have"
    _check_every_class(strata, known, num_classes, split)
    if num_labels == 0:
        return [np.sort(share) for share in known]
    if num_labels > available:
        raise ConfigError(
            f"num-labels is {num_labels}, but {where} {available} labelled images: take at most {available}, or 0 for "
            "all."
        )
    if num_labels < num_classes:
        raise ConfigError(
            f"num-labels is {num_labels}, but there are {num_classes} classes and each needs a label: "
            f"take at least {num_classes}, or 0 for all."
        )
    rng = np.random.default_rng([seed, 11])
    num_strata = int(strata.max()) + 1
    piles = [[rng.permutation(share[strata[share] == k]) for share in known] for k in range(num_strata)]
    wanted = None
    if setting.name == "dirichlet":
        proportions = np.random.default_rng([seed, 19]).dirichlet(np.full(len(shares), setting.value))
        wanted = num_labels * proportions
    counts = _even_counts(np.array([[len(pile) for pile in row] for row in piles]), num_labels, rng, wanted)
    return [
        np.sort(np.concatenate([piles[k][hospital][: counts[k, hospital]] for k in range(num_strata)]))
        for hospital in range(len(shares))
    ]


def _check_every_class(strata: np.ndarray, known: list[np.ndarray], num_classes: int, split: str) -> None:
    there = set(strata[np.concatenate(known)].tolist())
    if lost := sorted({k for k in strata.tolist() if 0 <= k < num_classes} - there):
        raise ConfigError(
            f"label-split={split} leaves no label of class {', '.join(map(str, lost))} (counted from 0): the hospitals "
            "that hold labels have no image of it. Take more of them, or another partition."
        )


def _even_counts(
    available: np.ndarray, total: int, rng: np.random.Generator, wanted: np.ndarray | None = None
) -> np.ndarray:
    """Share `total` out over the cells of `available` [K, H]: evenly over classes, then over hospitals.

    Args:
        wanted: How many each hospital is to have, [H], as near as the classes and `available` allow; None = alike, and
            in every class.
    """
    counts = np.zeros_like(available)
    luck = rng.permutation(available.size).reshape(available.shape)  # breaks ties, differently for every seed
    for _ in range(total):
        free = np.argwhere(counts < available)
        in_hospital, in_cell = counts.sum(axis=0)[free[:, 1]], counts[free[:, 0], free[:, 1]]
        then = (in_hospital, in_cell) if wanted is None else (in_cell, in_hospital - wanted[free[:, 1]])
        keys = (luck[free[:, 0], free[:, 1]], *then, counts.sum(axis=1)[free[:, 0]])
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
        H sorted arrays, parts of `kept`; all empty where they would hold fewer than MIN_HELDOUT of some class overall.
    """
    rng = np.random.default_rng([seed, 13])
    held = [set_aside(strata, indices, HELDOUT_FRACTION, rng) for indices in kept]
    everywhere = strata[np.concatenate(held)]
    if min(np.bincount(everywhere, minlength=num_classes)[:num_classes]) < MIN_HELDOUT:
        return [np.empty(0, dtype=np.int64) for _ in kept]
    return held
