"""Which of a site's images train, which choose the best round, which are tested on. Pure: no file is looked at.

N images of U units: patients where they are known, else images. A unit is never on two sides, so that no patient who
was trained on is tested on; images without a label whose patient is tested on or held out are used for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from jointdiff.data.labelled_split import heldout_labels
from jointdiff.data.listing import TEST
from jointdiff.data.partition import set_aside, strata_of
from jointdiff.errors import DataError

PARTS = ("train", "heldout", "nonmembers", "test")
IN_TRAIN, IN_HELDOUT, IN_NONMEMBERS, IN_TEST = range(4)
UNUSED = -1
NOT_USED = "of a patient who is tested on or held out, and without a label"  # why images are UNUSED
_SEED = 0  # everything else comes from the images themselves


def assign(
    labels: np.ndarray,
    *,
    names: Sequence[str],
    patients: np.ndarray | None,
    splits: Sequence[str],
    num_outputs: int,
    test_fraction: float,
    audit_holdout: float,
    where: str,
) -> np.ndarray:
    """Return the part of each image, int8 [N]: an index into PARTS, or UNUSED.

    Args:
        labels: int64 [N] or [N, L].
        names: What tells an image from others: a file's name, or a digest. They alone decide which units are tested
            on; the order of the images decides nothing.
        patients: int64 [N] or None.
        splits: '' for all images, or `train` and `test` as the site says.
        num_outputs: Classes or findings of the task.
        test_fraction: Share of the labelled units that is tested on where the site does not say.
        audit_holdout: Share of the training units that nothing is to see.
        where: Of the data, for errors.

    Raises:
        DataError: The site's own split puts a patient on both sides.
    """
    order = np.argsort(np.array(names), kind="stable")
    units = _units(patients, order)
    strata = _rarest(strata_of(labels)[order], units)
    if any(splits):
        tested = _given(np.array([split == TEST for split in splits])[order], units, where)
    else:
        digests = _unit_digests([names[i] for i in order], units)
        tested = _split_off(strata, digests, test_fraction)
    rest = np.setdiff1d(np.arange(len(strata)), tested)
    apart = set_aside(strata, rest, audit_holdout, np.random.default_rng([_SEED, 17]))
    rest = np.setdiff1d(rest, apart)
    (held,) = heldout_labels(strata, [rest[strata[rest] >= 0]], num_classes=num_outputs, seed=_SEED)
    of_unit = np.full(len(strata), IN_TRAIN, dtype=np.int8)
    for members, part in ((tested, IN_TEST), (apart, IN_NONMEMBERS), (held, IN_HELDOUT)):
        of_unit[members] = part
    parts = np.empty(len(labels), dtype=np.int8)
    parts[order] = of_unit[units]
    known = strata_of(labels) >= 0
    parts[~known & ((parts == IN_TEST) | (parts == IN_HELDOUT))] = UNUSED
    return parts


def patient_numbers(texts: Sequence[str]) -> np.ndarray:
    """Return a number per patient, int64 [N]; an image whose patient is not known ('') counts as a patient of its own.

    >>> patient_numbers(["b", "", "a", "b", ""]).tolist()
    [1, 2, 0, 1, 3]
    """
    number = {text: i for i, text in enumerate(sorted(set(texts) - {""}))}
    unknown = iter(range(len(number), len(number) + len(texts)))
    return np.array([number[text] if text else next(unknown) for text in texts], dtype=np.int64)


def _units(patients: np.ndarray | None, order: np.ndarray) -> np.ndarray:
    """Return the unit of each image in order of names, int64 [N]; units are numbered by their first image."""
    if patients is None:
        return np.arange(len(order))
    _, first, units = np.unique(patients[order], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[units.reshape(-1)]


def _rarest(strata: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return the stratum of each unit: of those of its labelled images the one that is rarest overall, -1 for none."""
    counts = np.bincount(strata[strata >= 0])
    result = np.full(units.max(initial=-1) + 1, -1, dtype=np.int64)
    for stratum in np.argsort(-counts, kind="stable"):  # the rarest last, so that it wins
        result[units[strata == stratum]] = stratum
    return result


def _given(tested: np.ndarray, units: np.ndarray, where: str) -> np.ndarray:
    both = np.intersect1d(units[tested], units[~tested])
    if len(both):
        raise DataError(
            f"{where}: {len(both)} patients have images both in the training part and in the test part, which would "
            "make the test look better than it is. Move each patient to one side, or leave the parts out: then they "
            "are drawn by patient."
        )
    return np.unique(units[tested])


def _unit_digests(names: Sequence[str], units: np.ndarray) -> list[bytes]:
    """Return a digest per unit, of its first name."""
    _, first = np.unique(units, return_index=True)
    return [hashlib.sha256(names[i].encode()).digest() for i in first]


def _split_off(strata: np.ndarray, digests: Sequence[bytes], fraction: float) -> np.ndarray:
    """Return the units with the smallest digests of each stratum: a share of it, one at least where there are two."""
    chosen: list[int] = []
    for stratum in np.unique(strata[strata >= 0]):
        members = sorted(np.flatnonzero(strata == stratum).tolist(), key=lambda unit: digests[unit])
        count = round(fraction * len(members))
        chosen += members[: max(1, min(count, len(members) - 1)) if len(members) > 1 else 0]
    return np.array(sorted(chosen), dtype=np.int64)
