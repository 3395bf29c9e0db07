"""Deal images to hospitals. Pure: integers in, integers out.

N images, H hospitals.
"""

from __future__ import annotations

import numpy as np

from jointdiff.errors import DataError

PARTITIONS = ("iid", "dirichlet", "scanner", "by-source")


def strata_of(labels: np.ndarray) -> np.ndarray:
    """Return one integer per image to balance by: its class, or its rarest finding.

    Args:
        labels: int [N] classes, or int [N, L] findings (0, 1); unknown = -1.

    Returns:
        int64 [N]: the class; or of several findings the one that is rarest in the whole set, L for none; -1 = unknown.

    >>> strata_of(np.array([[0, 0], [1, 0], [1, 1], [1, 0]])).tolist()
    [2, 0, 1, 0]
    """
    if labels.ndim == 1:
        return labels.astype(np.int64)
    num_findings = labels.shape[1]
    present = labels == 1
    strata = np.full(len(labels), num_findings, dtype=np.int64)
    for finding in np.argsort(-present.sum(axis=0), kind="stable"):  # the rarest last, so that it wins
        strata[present[:, finding]] = finding
    strata[(labels < 0).any(axis=1)] = -1
    return strata


def deal(
    partition: str,
    strata: np.ndarray,
    num_hospitals: int,
    *,
    seed: int,
    purpose: int = 0,
    sources: np.ndarray | None = None,
    what: str = "training images",
) -> list[np.ndarray]:
    """Deal images to hospitals so that every image goes to exactly one.

    Args:
        partition: `iid` (every hospital the same mixture), `dirichlet:ALPHA` (each class is shared out in proportions
            drawn from a Dirichlet distribution; a small ALPHA leaves hospitals with few classes), `scanner` (dealt like
            iid; the scanners differ, see scanner.py), or `by-source` (the k-th source goes to hospital k modulo H).
        strata: int [N], see `strata_of`.
        num_hospitals: H, at least 1.
        seed: Drives everything. The Dirichlet proportions depend on it alone, so that a hospital's test images are
            mixed like its training images.
        purpose: Tells apart the draws of several sets with one seed.
        sources: int [N], needed by `by-source`.
        what: Named in errors.

    Returns:
        H arrays of sorted indices.

    Raises:
        DataError: A hospital would be left without data, or there are no sources.
    """
    scheme, _, value = partition.partition(":")
    if scheme == "by-source":
        owner = _by_source(sources, num_hospitals)
    elif scheme == "dirichlet":
        owner = _by_dirichlet(strata, num_hospitals, float(value), seed, purpose)
    else:
        owner = _evenly(strata, num_hospitals, np.random.default_rng([seed, purpose]))
    shares = [np.flatnonzero(owner == hospital) for hospital in range(num_hospitals)]
    empty = [f"hospital-{hospital + 1}" for hospital, share in enumerate(shares) if not len(share)]
    if empty:
        named = ", ".join(empty[:10]) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
        raise DataError(
            f"partition '{partition}' leaves {named} without {what} ({len(strata)} for {num_hospitals} hospitals). Take"
            " fewer hospitals (num-hospitals), a larger ALPHA, or another split-seed."
        )
    return shares


def set_aside(strata: np.ndarray, indices: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a share of the images of each stratum, rounded stratum by stratum.

    Args:
        strata: int [N].
        indices: Images to draw from, int [M].
        share: 0 to 1.

    Returns:
        Sorted indices, part of `indices`.

    >>> set_aside(np.array([0, 0, 1, 1, 1, 1]), np.arange(6), 0.5, np.random.default_rng(0)).tolist()
    [0, 2, 4]
    """
    chosen = [np.empty(0, dtype=np.int64)]
    for k in np.unique(strata[indices]):
        members = rng.permutation(indices[strata[indices] == k])
        chosen.append(members[: round(share * len(members))])
    return np.sort(np.concatenate(chosen))


def _evenly(strata: np.ndarray, num_hospitals: int, rng: np.random.Generator) -> np.ndarray:
    """Deal each stratum like cards, going on where the last one ended, so that sizes differ by one at most."""
    order = rng.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    owner = np.empty(len(strata), dtype=np.int64)
    owner[order] = np.arange(len(strata)) % num_hospitals
    return owner


def _by_dirichlet(strata: np.ndarray, num_hospitals: int, alpha: float, seed: int, purpose: int) -> np.ndarray:
    kinds = np.arange(-1, strata.max(initial=-1) + 1)
    proportions = np.random.default_rng(seed).dirichlet(np.full(num_hospitals, alpha), size=len(kinds))
    rng = np.random.default_rng([seed, purpose])
    owner = np.empty(len(strata), dtype=np.int64)
    for kind, shares in zip(kinds, proportions, strict=True):
        members = rng.permutation(np.flatnonzero(strata == kind))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for hospital, part in enumerate(np.split(members, cuts)):
            owner[part] = hospital
    return owner


def _by_source(sources: np.ndarray | None, num_hospitals: int) -> np.ndarray:
    if sources is None:
        raise DataError(
            "partition 'by-source' needs to know where each image came from, and this data set does not say. "
            "Add train_source to an npz, or take partition=iid."
        )
    return np.unique(sources, return_inverse=True)[1].reshape(-1) % num_hospitals
