"""Whose image is it? One function per partition. Pure.

N images, H hospitals, K classes; strata int [N] as `partition.strata_of` gives them. Each function returns the owner of
every image, int [N] in 0..H-1.
"""

from __future__ import annotations

import numpy as np

from jointdiff.errors import ConfigError, DataError


def evenly(strata: np.ndarray, num_hospitals: int, rng: np.random.Generator) -> np.ndarray:
    """Deal each stratum like cards, going on where the last one ended, so that sizes differ by one at most."""
    owner = np.empty(len(strata), dtype=np.int64)
    owner[_shuffled_by_stratum(strata, rng)] = np.arange(len(strata)) % num_hospitals
    return owner


def by_dirichlet(
    strata: np.ndarray, num_hospitals: int, alpha: float, rng: np.random.Generator, *, seed: int
) -> np.ndarray:
    """Share each class out in proportions of its own: label skew (Hsu et al. 2019, arXiv 1909.06335).

    A hospital that would be left without an image gets one of the hospital that has most.

    Args:
        alpha: Of the symmetric Dirichlet distribution; a small one leaves hospitals with few classes.
        rng: Which images these are.
        seed: Drives the proportions.
    """
    kinds = np.arange(-1, strata.max(initial=-1) + 1)
    proportions = np.random.default_rng(seed).dirichlet(np.full(num_hospitals, alpha), size=len(kinds))
    owner = np.empty(len(strata), dtype=np.int64)
    for kind, shares in zip(kinds, proportions, strict=True):
        members = rng.permutation(np.flatnonzero(strata == kind))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for hospital, part in enumerate(np.split(members, cuts)):
            owner[part] = hospital
    sizes = np.bincount(owner, minlength=num_hospitals)
    for empty in np.flatnonzero(sizes == 0) if len(strata) >= num_hospitals else ():
        richest = int(sizes.argmax())
        owner[rng.choice(np.flatnonzero(owner == richest))] = empty
        sizes[richest] -= 1
        sizes[empty] = 1
    return owner


def by_quantity(
    strata: np.ndarray, num_hospitals: int, alpha: float, rng: np.random.Generator, *, seed: int
) -> np.ndarray:
    """Give hospitals sizes drawn from a Dirichlet distribution, with the classes mixed alike: quantity skew.

    Li et al. 2022 (arXiv 2102.02079) call it so. Every hospital gets one image at least, if there are so many.

    Args:
        alpha: A small one leaves most images to few hospitals.
        rng: Which images these are.
        seed: Drives the sizes.
    """
    proportions = np.random.default_rng(seed).dirichlet(np.full(num_hospitals, alpha))
    sizes = _sizes(proportions, len(strata))
    # A hospital of size s takes every (N/s)-th card of the sorted deck, so it gets its share of every stratum.
    turns = np.concatenate([(np.arange(size) + rng.random()) / size for size in sizes if size])
    owner = np.empty(len(strata), dtype=np.int64)
    owner[_shuffled_by_stratum(strata, rng)] = np.repeat(np.arange(num_hospitals), sizes)[np.argsort(turns)]
    return owner


def with_gaps(
    strata: np.ndarray, num_hospitals: int, num_missing: int, rng: np.random.Generator, *, num_classes: int
) -> np.ndarray:
    """Let every hospital lack some classes, in turn; a class is dealt evenly to the hospitals that see it.

    The first hospital sees the first K - N classes, the second the K - N after these, and so on round and round.
    Images of unknown class are dealt to all.

    Args:
        num_missing: N, how many classes each hospital lacks.
        rng: Which images these are.
        num_classes: K.

    Raises:
        ConfigError: N is not below K, or so few hospitals see K - N classes each that one is nowhere.
    """
    if num_missing >= num_classes:
        raise ConfigError(
            f"partition=gaps:{num_missing} takes {num_missing} of {num_classes} classes away from every hospital, so "
            f"none would be left: take at most gaps:{num_classes - 1}."
        )
    num_seen = num_classes - num_missing
    if num_hospitals * num_seen < num_classes:
        raise ConfigError(
            f"partition=gaps:{num_missing} leaves {num_seen} of {num_classes} classes to each of {num_hospitals} "
            "hospitals, so a class would be nowhere: take a smaller N, or more hospitals (num-hospitals)."
        )
    first = np.arange(num_hospitals) * num_seen
    sees = (np.arange(num_classes) - first[:, None]) % num_classes < num_seen  # [H, K]
    owner = np.empty(len(strata), dtype=np.int64)
    for kind in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == kind))
        holders = np.flatnonzero(sees[:, kind]) if kind >= 0 else np.arange(num_hospitals)
        owner[members] = holders[(np.arange(len(members)) + kind) % len(holders)]
    return owner


def by_source(sources: np.ndarray | None, num_hospitals: int) -> np.ndarray:
    """Give the images of the k-th source to hospital k modulo H.

    Raises:
        DataError: Nobody knows the sources.
    """
    if sources is None:
        raise DataError(
            "partition 'by-source' needs to know where each image came from, and this data set does not say. "
            "Add train_source to an npz, or take partition=iid."
        )
    return np.unique(sources, return_inverse=True)[1].reshape(-1) % num_hospitals


def _shuffled_by_stratum(strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return all indices, stratum after stratum, in random order within each."""
    order = rng.permutation(len(strata))
    return order[np.argsort(strata[order], kind="stable")]


def _sizes(proportions: np.ndarray, total: int) -> np.ndarray:
    """Return whole numbers [H] in these proportions that sum to `total`, each at least 1 where `total` allows it.

    >>> _sizes(np.array([0.7, 0.3, 0.0]), 10).tolist()
    [6, 3, 1]
    """
    spare = max(0, total - len(proportions))
    wanted = proportions * spare
    sizes = np.floor(wanted).astype(np.int64)
    short = spare - sizes.sum()
    sizes[np.argsort(sizes - wanted, kind="stable")[:short]] += 1
    return sizes + (np.arange(len(proportions)) < total)
