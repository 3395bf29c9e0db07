"""Which labels are kept, and which of those are held out."""

from __future__ import annotations

import numpy as np
import pytest

from jointdiff.data.labelled_split import HELDOUT_FRACTION, MIN_HELDOUT, heldout_labels, kept_labels
from jointdiff.data.partition import deal
from jointdiff.errors import ConfigError

STRATA = np.random.default_rng(0).choice(3, size=300, p=[0.6, 0.36, 0.04])
SHARES = deal("iid", STRATA, 3, seed=0, num_classes=3)


def keep(num_labels: int, *, strata: np.ndarray = STRATA, seed: int = 0, split: str = "even") -> list[np.ndarray]:
    return kept_labels(strata, SHARES, num_labels, num_classes=3, seed=seed, split=split)


def table(kept: list[np.ndarray]) -> np.ndarray:
    """Return the counts, [hospital, class]."""
    return np.array([np.bincount(STRATA[rows], minlength=3) for rows in kept])


@pytest.mark.parametrize("num_labels", [3, 12, 18, 20, 31])
def test_as_even_as_possible_per_class_and_hospital(num_labels: int) -> None:
    kept = keep(num_labels)
    counts = table(kept)
    assert counts.sum() == num_labels
    assert np.ptp(counts.sum(axis=0)) <= 1 and np.ptp(counts.sum(axis=1)) <= 1 and np.ptp(counts, axis=0).max() <= 1
    assert all(np.isin(rows, share).all() for rows, share in zip(kept, SHARES, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.1, 1, 1e9])
def test_dirichlet_gives_unequal_numbers_and_keeps_the_classes_even(alpha: float, seed: int) -> None:
    counts = table(keep(30, seed=seed, split=f"dirichlet:{alpha}"))
    assert counts.sum(axis=0).tolist() == [10, 10, 10]
    assert sorted(counts.sum(axis=1).tolist()) == [10, 10, 10] or alpha < 1e9
    assert all(np.isin(rows, share).all() for rows, share in zip(keep(30, seed=seed), SHARES, strict=True))


def test_a_small_alpha_gives_labels_more_unequally_than_a_large_one() -> None:
    def spread(alpha: float) -> float:
        return float(
            np.mean([np.std(table(keep(30, seed=s, split=f"dirichlet:{alpha}")).sum(axis=1)) for s in range(20)])
        )

    assert spread(100) < 1.5 < spread(1) < spread(0.1)


def test_a_hospital_that_has_too_few_images_leaves_its_labels_to_others() -> None:
    few = [SHARES[0][:3], *SHARES[1:]]
    for seed in range(5):
        kept = kept_labels(STRATA, few, 60, num_classes=3, seed=seed, split="dirichlet:0.1")
        assert sum(map(len, kept)) == 60 and len(kept[0]) <= 3


@pytest.mark.parametrize("num_labels", [0, 3, 12])
def test_the_first_hospitals_hold_all_labels(num_labels: int) -> None:
    kept = keep(num_labels, split="hospitals:2")
    assert len(kept[2]) == 0 and sum(map(len, kept)) == (num_labels or len(SHARES[0]) + len(SHARES[1]))
    assert np.ptp([len(rows) for rows in kept[:2]]) <= 1


def test_three_holders_of_three_are_everybody_and_the_servers_labels_are_drawn_alike() -> None:
    even = [rows.tolist() for rows in keep(12)]
    for split in ("hospitals:3", "server"):
        assert [rows.tolist() for rows in keep(12, split=split)] == even


def test_more_labels_than_the_holders_have_and_a_class_that_they_lack() -> None:
    with pytest.raises(ConfigError, match=r"num-labels is 101, but the first 1 hospitals have 100 labelled images"):
        keep(101, split="hospitals:1")
    gaps = deal("gaps:1", STRATA, 3, seed=0, num_classes=3)
    with pytest.raises(ConfigError, match=r"label-split=hospitals:1 leaves no label of class 2"):
        kept_labels(STRATA, gaps, 12, num_classes=3, seed=0, split="hospitals:1")


def test_a_rare_class_gives_all_it_has_and_the_others_fill_up() -> None:
    rare = int((STRATA == 2).sum())
    assert sorted(table(keep(90)).sum(axis=0).tolist()) == sorted(
        [rare, (90 - rare) // 2, 90 - rare - (90 - rare) // 2]
    )


def test_the_split_seed_chooses_other_images() -> None:
    assert [k.tolist() for k in keep(12)] == [k.tolist() for k in keep(12)]
    assert [k.tolist() for k in keep(12)] != [k.tolist() for k in keep(12, seed=1)]


def test_zero_keeps_all_and_unknown_labels_are_never_kept() -> None:
    strata = np.where(np.arange(300) < 100, STRATA, -1)
    assert np.sort(np.concatenate(keep(0, strata=strata))).tolist() == list(range(100))
    assert np.concatenate(keep(30, strata=strata)).max() < 100


def test_too_many_and_too_few() -> None:
    with pytest.raises(ConfigError, match=r"num-labels is 301.*300 labelled images"):
        keep(301)
    with pytest.raises(ConfigError, match=r"num-labels is 2.*3 classes.*at least 3"):
        keep(2)
    assert sum(map(len, keep(300))) == 300


def test_nothing_is_held_out_where_a_fifth_is_fewer_than_ten_of_a_class() -> None:
    rows = np.flatnonzero(STRATA < 2)
    few, enough = ([np.concatenate([rows[STRATA[rows] == k][:count] for k in (0, 1)])] for count in (47, 48))
    assert sum(map(len, heldout_labels(STRATA, few, num_classes=2, seed=0))) == 0
    assert [len(held) for held in heldout_labels(STRATA, enough, num_classes=2, seed=0)] == [2 * MIN_HELDOUT]


def test_about_a_fifth_per_class_is_held_out() -> None:
    kept = kept_labels(np.where(STRATA == 2, -1, STRATA), SHARES, 180, num_classes=2, seed=0)
    held = heldout_labels(STRATA, kept, num_classes=2, seed=0)
    assert all(np.isin(h, k).all() for h, k in zip(held, kept, strict=True))
    assert (table(held)[:, :2] == round(30 * HELDOUT_FRACTION)).all()
    large = np.random.default_rng(1).integers(0, 3, 3000)
    shares = deal("iid", large, 3, seed=0, num_classes=3)
    all_held = heldout_labels(large, kept_labels(large, shares, 0, num_classes=3, seed=0), num_classes=3, seed=0)
    assert sum(map(len, all_held)) == pytest.approx(3000 * HELDOUT_FRACTION, rel=0.01)
