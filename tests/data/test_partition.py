"""Dealing images to hospitals."""

from __future__ import annotations

import numpy as np
import pytest

from jointdiff.data.partition import deal, strata_of
from jointdiff.errors import DataError

STRATA = np.random.default_rng(0).choice(3, size=301, p=[0.6, 0.3, 0.1])
SOURCES = np.random.default_rng(1).choice([4, 7, 9], size=301)


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.5", "scanner", "by-source"])
def test_every_image_goes_to_exactly_one_hospital_and_the_seed_decides(partition: str) -> None:
    shares, again, other = (deal(partition, STRATA, 3, seed=seed, sources=SOURCES) for seed in (0, 0, 1))
    assert np.sort(np.concatenate(shares)).tolist() == list(range(301))
    assert [share.tolist() for share in shares] == [share.tolist() for share in again]
    changed = [share.tolist() for share in shares] != [share.tolist() for share in other]
    assert changed is (partition != "by-source")


def test_iid_is_even_in_size_and_class() -> None:
    counts = np.array([np.bincount(STRATA[share], minlength=3) for share in deal("iid", STRATA, 4, seed=0)])
    assert np.ptp(counts.sum(axis=1)) <= 1 and np.ptp(counts, axis=0).max() <= 1


def test_a_small_alpha_deals_more_unevenly_than_a_large_one() -> None:
    def unevenness(partition: str) -> float:
        counts = [np.bincount(STRATA[share], minlength=3) for share in deal(partition, STRATA, 3, seed=5)]
        return float(np.std([c / c.sum() for c in counts], axis=0).mean())

    assert unevenness("dirichlet:1000") < 0.05 < unevenness("dirichlet:0.3")


def test_dirichlet_mixes_test_images_like_training_images() -> None:
    train, test = (deal("dirichlet:0.5", STRATA, 3, seed=5, purpose=purpose) for purpose in (0, 1))
    assert [len(share) for share in train] == [len(share) for share in test]
    assert any(a.tolist() != b.tolist() for a, b in zip(train, test, strict=True))


def test_by_source_keeps_a_source_together() -> None:
    for hospital, share in enumerate(deal("by-source", STRATA, 3, seed=0, sources=SOURCES)):
        assert set(SOURCES[share]) == {[4, 7, 9][hospital]}


def test_a_hospital_without_data_is_named() -> None:
    with pytest.raises(DataError, match=r"leaves hospital-4 without training images \(301 for 4 hospitals\)"):
        deal("by-source", STRATA, 4, seed=0, sources=SOURCES)
    with pytest.raises(DataError, match="hospital-3, hospital-4 without test images"):
        deal("iid", np.array([0, 1]), 4, seed=0, what="test images")
    with pytest.raises(DataError, match=r"does not say.*train_source"):
        deal("by-source", STRATA, 2, seed=0)


def test_strata_of_findings_are_the_rarest_one() -> None:
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 0], [-1, -1]])
    assert strata_of(labels).tolist() == [0, 1, 0, 2, -1]
    assert strata_of(labels[:, 0]).tolist() == labels[:, 0].tolist()
