"""Deal images to hospitals. Pure: integers in, integers out.

N images, H hospitals.
"""

from __future__ import annotations

import numpy as np

from jointdiff.data import dealing
from jointdiff.errors import DataError
from jointdiff.settings import partition_of


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
    num_classes: int,
    purpose: int = 0,
    sources: np.ndarray | None = None,
    what: str = "training images",
) -> list[np.ndarray]:
    """Deal images to hospitals so that every image goes to exactly one.

    Args:
        partition: As `settings.partition_of` reads it; one function of dealing.py each. `scanner` is dealt like `iid`:
            the scanners differ, see scanner.py.
        strata: int [N], see `strata_of`.
        num_hospitals: H, at least 1.
        seed: Drives everything. Proportions, sizes and gaps depend on it alone, so that a hospital's test images are
            mixed like its training images.
        num_classes: K of the task; `gaps` is for classes.
        purpose: Tells apart the draws of several sets with one seed.
        sources: int [N], needed by `by-source`.
        what: Named in errors.

    Returns:
        H arrays of sorted indices.

    Raises:
        ConfigError: `gaps` leaves a class without a hospital.
        DataError: A hospital would be left without data, or there are no sources.
    """
    setting, rng = partition_of(partition), np.random.default_rng([seed, purpose])
    if setting.name == "by-source":
        owner = dealing.by_source(sources, num_hospitals)
    elif setting.name == "dirichlet":
        owner = dealing.by_dirichlet(strata, num_hospitals, setting.value, rng, seed=seed)
    elif setting.name == "quantity":
        owner = dealing.by_quantity(strata, num_hospitals, setting.value, rng, seed=seed)
    elif setting.name == "gaps":
        owner = dealing.with_gaps(strata, num_hospitals, setting.count, rng, num_classes=num_classes)
    else:
        owner = dealing.evenly(strata, num_hospitals, rng)
    shares = [np.flatnonzero(owner == hospital) for hospital in range(num_hospitals)]
    empty = [f"hospital-{hospital + 1}" for hospital, share in enumerate(shares) if not len(share)]
    if empty:
        named = ", ".join(empty[:10]) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
        raise DataError(
            f"partition '{partition}' leaves {named} without {what} ({len(strata)} for {num_hospitals} hospitals). Take"
            " fewer hospitals (num-hospitals) or another partition."
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
