"""Which images train and which are tested on: by unit, by name, and by nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jointdiff.data import UNKNOWN
from jointdiff.data.site_split import IN_HELDOUT, IN_NONMEMBERS, IN_TEST, IN_TRAIN, UNUSED, assign, patient_numbers
from jointdiff.errors import DataError


def parts_of(labels: np.ndarray, **changes: Any) -> np.ndarray:
    keys: dict[str, Any] = {
        "names": [f"scan-{i:04d}" for i in range(len(labels))], "patients": None, "splits": [""] * len(labels),
        "num_outputs": 2, "test_fraction": 0.2, "audit_holdout": 0.0, "where": "/data",
    }  # fmt: skip
    return assign(labels, **keys | changes)


def test_a_share_of_each_class_is_tested_on() -> None:
    labels = np.repeat([0, 1, UNKNOWN], [200, 80, 30])
    parts = parts_of(labels, test_fraction=0.3)
    assert [(parts[labels == k] == IN_TEST).sum() for k in (0, 1, UNKNOWN)] == [60, 24, 0]
    assert [(parts[labels == k] == IN_HELDOUT).sum() for k in (0, 1, UNKNOWN)] == [28, 11, 0]
    assert not (parts == UNUSED).any()


def test_small_classes_keep_an_image_on_each_side() -> None:
    parts = parts_of(np.repeat([0, 1], [2, 1]))
    assert sorted(parts[:2].tolist()) == [IN_TRAIN, IN_TEST] and parts[2] == IN_TRAIN


def test_the_order_of_the_images_changes_nothing() -> None:
    labels = np.random.default_rng(0).integers(-1, 2, 90)
    names = [f"scan-{i:04d}" for i in range(90)]
    patients = np.random.default_rng(1).integers(0, 50, 90)
    order = np.random.default_rng(2).permutation(90)
    for known in (None, patients):
        keys: dict[str, Any] = {"audit_holdout": 0.2}
        straight = parts_of(labels, names=names, patients=known, **keys)
        turned = parts_of(
            labels[order], names=[names[i] for i in order], patients=None if known is None else known[order], **keys
        )
        np.testing.assert_array_equal(straight[order], turned)


def test_one_more_image_moves_few_others_into_the_test_part() -> None:
    labels = np.arange(200) % 2
    before, after = parts_of(labels), parts_of(np.append(labels, 1))
    assert ((before == IN_TEST) != (after[:200] == IN_TEST)).sum() <= 1
    other = parts_of(labels, names=[f"other-{i:04d}" for i in range(200)])
    assert ((before == IN_TEST) != (other == IN_TEST)).sum() > 20, "other names are other test images"


def test_a_patient_is_on_one_side_and_what_he_leaves_over_is_unused() -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 400, 1200)
    labels = rng.integers(-1, 2, 1200)
    parts = parts_of(labels, patients=patients, audit_holdout=0.1)
    for patient in range(400):
        sides = set(parts[patients == patient]) - {UNUSED}
        assert len(sides) <= 1
    assert {IN_TRAIN, IN_HELDOUT, IN_NONMEMBERS, IN_TEST, UNUSED} <= set(parts.tolist())
    assert (labels[parts == UNUSED] == UNKNOWN).all()
    assert (labels[(parts == IN_TEST) | (parts == IN_HELDOUT)] != UNKNOWN).all()


def test_the_rarest_finding_of_a_patient_counts() -> None:
    """Patients of the rare class are tested on in proportion, though most of their images show the other."""
    patients = np.repeat(np.arange(40), 5)
    labels = np.zeros(200, dtype=np.int64)
    labels[np.arange(0, 50, 5)] = 1  # one image each of ten patients
    parts = parts_of(labels, patients=patients)
    assert (parts[labels == 1] == IN_TEST).sum() == 2 and (parts == IN_TEST).sum() == 5 * (2 + 6)


def test_a_given_split_is_kept_and_one_through_a_patient_refused() -> None:
    labels = np.arange(20) % 2
    splits = ["test" if i in (3, 4, 5) else "train" for i in range(20)]
    parts = parts_of(labels, splits=splits)
    assert np.flatnonzero(parts == IN_TEST).tolist() == [3, 4, 5]
    with pytest.raises(DataError, match=r"^/data: 1 patients have images both"):
        parts_of(labels, splits=splits, patients=np.arange(20) // 2)


def test_findings() -> None:
    labels = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [-1, -1]] * 20)
    parts = parts_of(labels)
    assert (parts == IN_TEST).sum() == 16 and (parts[(labels == -1).any(axis=1)] == IN_TRAIN).all()


def test_unknown_patients_are_patients_of_their_own() -> None:
    assert patient_numbers(["", "a", "", "a"]).tolist() == [1, 0, 2, 0]
