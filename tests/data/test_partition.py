"""Dealing images to hospitals."""

from __future__ import annotations

import numpy as np
import pytest

from jointdiff.data.partition import deal, strata_of
from jointdiff.errors import ConfigError, DataError

STRATA = np.random.default_rng(0).choice(3, size=301, p=[0.6, 0.3, 0.1])
SOURCES = np.random.default_rng(1).choice([4, 7, 9], size=301)


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.5", "quantity:0.5", "gaps:1", "scanner", "by-source"])
def test_every_image_goes_to_exactly_one_hospital_and_the_seed_decides(partition: str) -> None:
    shares, again, other = (deal(partition, STRATA, 3, seed=seed, num_classes=3, sources=SOURCES) for seed in (0, 0, 1))
    assert np.sort(np.concatenate(shares)).tolist() == list(range(301))
    assert [share.tolist() for share in shares] == [share.tolist() for share in again]
    changed = [share.tolist() for share in shares] != [share.tolist() for share in other]
    assert changed is (partition != "by-source")


def test_iid_is_even_in_size_and_class() -> None:
    counts = np.array(
        [np.bincount(STRATA[share], minlength=3) for share in deal("iid", STRATA, 4, seed=0, num_classes=3)]
    )
    assert np.ptp(counts.sum(axis=1)) <= 1 and np.ptp(counts, axis=0).max() <= 1


def test_a_small_alpha_deals_more_unevenly_than_a_large_one() -> None:
    def unevenness(partition: str) -> float:
        counts = [
            np.bincount(STRATA[share], minlength=3) for share in deal(partition, STRATA, 3, seed=5, num_classes=3)
        ]
        return float(np.std([c / c.sum() for c in counts], axis=0).mean())

    assert unevenness("dirichlet:1000") < 0.05 < unevenness("dirichlet:0.3")


@pytest.mark.parametrize("num_hospitals", [3, 30, 301])
def test_dirichlet_leaves_nobody_without_an_image(num_hospitals: int) -> None:
    for seed in range(3):
        assert counts_of("dirichlet:0.01", num_hospitals, seed=seed).sum(axis=1).min() >= 1


def counts_of(partition: str, num_hospitals: int, *, seed: int = 0, strata: np.ndarray = STRATA) -> np.ndarray:
    """Return images by hospital and class, [H, 3]."""
    shares = deal(partition, strata, num_hospitals, seed=seed, num_classes=3)
    return np.array([np.bincount(strata[share][strata[share] >= 0], minlength=3) for share in shares])


@pytest.mark.parametrize("seed", range(5))
def test_quantity_skew_changes_sizes_and_no_mixture(seed: int) -> None:
    counts = counts_of("quantity:0.5", 4, seed=seed)
    sizes = counts.sum(axis=1)
    assert np.abs(counts - sizes[:, None] * counts.sum(axis=0) / 301).max() < 1 + 1e-9  # its share of every class
    assert sizes.max() > 1.5 * 301 / 4 and np.ptp(counts_of("quantity:10000", 4, seed=seed).sum(axis=1)) < 15


def test_quantity_skew_leaves_nobody_without_an_image() -> None:
    sizes = counts_of("quantity:0.001", 10).sum(axis=1)
    assert sorted(sizes.tolist()) == [1] * 9 + [292]
    assert counts_of("quantity:0.001", 301).sum(axis=1).tolist() == [1] * 301
    with pytest.raises(DataError, match=r"leaves hospital-302 without"):
        counts_of("quantity:0.001", 302)


@pytest.mark.parametrize(("missing", "num_hospitals"), [(1, 2), (1, 3), (1, 7), (2, 3), (2, 8)])
def test_every_hospital_lacks_so_many_classes_and_every_class_is_somewhere(missing: int, num_hospitals: int) -> None:
    counts = counts_of(f"gaps:{missing}", num_hospitals)
    assert ((counts == 0).sum(axis=1) == missing).all() and counts.sum() == 301
    holders = (counts > 0).sum(axis=0)
    assert holders.min() >= 1 and np.ptp(holders) <= 1
    for of_class in counts.T:  # evenly to those that see it
        assert np.ptp(of_class[of_class > 0]) <= 1


def test_gaps_are_the_same_in_the_test_split_even_where_a_class_has_no_image_there() -> None:
    without_last = STRATA[STRATA < 2]
    shares = deal("gaps:1", without_last, 2, seed=0, num_classes=3, purpose=1)
    train = counts_of("gaps:1", 2)
    for share, seen in zip(shares, train > 0, strict=True):
        assert set(without_last[share]) == set(np.flatnonzero(seen[:2]))


def test_images_of_unknown_class_go_to_everybody() -> None:
    strata = np.where(np.arange(301) < 100, -1, STRATA)
    shares = deal("gaps:2", strata, 3, seed=0, num_classes=3)
    assert sorted((strata[share] == -1).sum() for share in shares) == [33, 33, 34]


def test_gaps_that_leave_no_class_or_lose_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gaps:3 takes 3 of 3 classes.*at most gaps:2"):
        counts_of("gaps:3", 3)
    with pytest.raises(ConfigError, match=r"gaps:2 leaves 1 of 3 classes to each of 2 hospitals.*nowhere"):
        counts_of("gaps:2", 2)


def test_dirichlet_mixes_test_images_like_training_images() -> None:
    train, test = (deal("dirichlet:0.5", STRATA, 3, seed=5, num_classes=3, purpose=purpose) for purpose in (0, 1))
    assert [len(share) for share in train] == [len(share) for share in test]
    assert any(a.tolist() != b.tolist() for a, b in zip(train, test, strict=True))


def test_by_source_keeps_a_source_together() -> None:
    for hospital, share in enumerate(deal("by-source", STRATA, 3, seed=0, num_classes=3, sources=SOURCES)):
        assert set(SOURCES[share]) == {[4, 7, 9][hospital]}


def test_a_hospital_without_data_is_named() -> None:
    with pytest.raises(DataError, match=r"leaves hospital-4 without training images \(301 for 4 hospitals\)"):
        deal("by-source", STRATA, 4, seed=0, num_classes=3, sources=SOURCES)
    with pytest.raises(DataError, match="hospital-3, hospital-4 without test images"):
        deal("iid", np.array([0, 1]), 4, seed=0, num_classes=3, what="test images")
    with pytest.raises(DataError, match=r"does not say.*train_source"):
        deal("by-source", STRATA, 2, seed=0, num_classes=3)


def test_strata_of_findings_are_the_rarest_one() -> None:
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 0], [-1, -1]])
    assert strata_of(labels).tolist() == [0, 1, 0, 2, -1]
    assert strata_of(labels[:, 0]).tolist() == labels[:, 0].tolist()
