"""Grades by hand on edits whose truth is known, and merging that equals grading in one place."""

from __future__ import annotations

import numpy as np
import pytest

from jointdiff.grading import dilate, grade, merge_grades

RNG = np.random.default_rng(0)


def scans(n: int = 12, channels: int = 1):  # type: ignore[no-untyped-def]
    """Ill scans (even) with a square lesion, healthy ones (odd), their masks and twins."""
    twins = RNG.integers(60, 120, (n, 20, 20, channels)).astype(np.uint8)
    masks = np.zeros((n, 20, 20), bool)
    masks[::2, 6:10, 8:12] = True
    return np.where(masks[..., None], twins + 100, twins).astype(np.uint8), masks, twins


def two_class(p: np.ndarray) -> np.ndarray:
    return np.stack([1 - p, p], 1)


def test_the_perfect_explanation() -> None:
    images, masks, twins = scans()
    ill = masks.any((1, 2))
    targets = np.where(ill, 0, 1)
    before, after = two_class(np.where(ill, 0.9, 0.1)), two_class(np.where(ill, 0.2, 0.8))
    got = grade(images, twins, before, after, targets, masks=masks, twins=twins, seconds_per_image=0.5,
                referee=lambda x: two_class((x.max((1, 2, 3)) > 130).astype(float)))  # fmt: skip
    assert got["validity"] == 1 and got["identity"] == 1 and got["found_share"] == 1
    assert got["confidence_gain"] == pytest.approx(0.7)
    assert got["lesion_share"] == 1 and got["twin_distance_ratio"] == 0
    assert got["lesion_area_share"] == pytest.approx(8 * 8 / 400)
    assert got["l1"] == pytest.approx(0.5 * 16 * 100 / 255 / 400)
    assert got["l2"] == pytest.approx(0.5 * np.sqrt(16 * (100 / 255) ** 2 / 400))
    assert got["changed_share"] == pytest.approx(0.5 * 16 / 400)
    assert got["referee_validity"] == 0.5  # the healed look healthy; the untouched healthy ones do not look ill
    assert (got["num_scans"], got["num_lesions"], got["seconds_per_image"]) == (12, 6, 0.5)


def test_an_edit_beside_the_lesion_scores_chance_or_less() -> None:
    images, masks, twins = scans()
    everywhere = images + 20
    got = grade(images, everywhere, *[two_class(np.full(12, 0.5))] * 2, np.zeros(12, int), masks=masks, twins=twins)
    assert got["lesion_share"] == pytest.approx(got["lesion_area_share"])
    assert got["twin_distance_ratio"] > 1
    elsewhere = images.copy()
    elsewhere[:, :3] += 20
    got = grade(images, elsewhere, *[two_class(np.full(12, 0.5))] * 2, np.zeros(12, int), masks=masks, twins=twins)
    assert got["lesion_share"] == 0


def test_changes_up_to_five_percent_do_not_count_as_changed() -> None:
    images, _, _ = scans(channels=3)
    edited = images.copy()
    edited[:, 0, 0, 1] += 13  # 5.1% in one channel
    edited[:, 1, 1] += 12  # 4.7%
    got = grade(images, edited, *[two_class(np.full(12, 0.5))] * 2, np.ones(12, int))
    assert got["changed_share"] == pytest.approx(1 / 400)


def test_the_identity_is_lost_when_edits_become_another_scan() -> None:
    images, _, _ = scans()
    edited = images.copy()
    edited[:3] = images[5]
    got = grade(images, edited, *[two_class(np.full(12, 0.5))] * 2, np.ones(12, int))
    assert got["identity"] == pytest.approx(9 / 12)


def test_identity_forgives_an_exact_copy_of_the_original() -> None:
    images, _, _ = scans()
    images[3] = images[4]
    got = grade(images, images, *[two_class(np.full(12, 0.5))] * 2, np.ones(12, int))
    assert got["identity"] == 1


def test_what_was_not_found_counts_against_validity_and_not_for_smallness() -> None:
    images, _, _ = scans(4)
    edited = images.copy()
    edited[:2] -= 51
    found = np.array([True, True, False, False])
    after = two_class(np.array([0.9, 0.3, 0.9, 0.3]))
    got = grade(images, edited, two_class(np.full(4, 0.1)), after, np.ones(4, int), found=found,
                referee=lambda x: two_class(np.ones(len(x))))  # fmt: skip
    assert got["validity"] == 0.25 and got["found_share"] == 0.5 and got["referee_validity"] == 0.5
    assert got["l1"] == pytest.approx(0.2) and got["num_found"] == 2


def test_nothing_found_leaves_out_what_cannot_be_said() -> None:
    images, masks, twins = scans(4)
    probs = two_class(np.full(4, 0.1))
    got = grade(images, images, probs, probs, np.ones(4, int), found=np.zeros(4, bool), masks=masks, twins=twins)
    assert got["validity"] == 0 and got["num_found"] == 0
    assert not {"l1", "identity", "lesion_share", "referee_validity"} & set(got)
    assert all(np.isfinite(v) for v in got.values())


def test_multi_label_targets_turn_a_label_over() -> None:
    images, masks, twins = scans(4)
    before = np.array([[0.9, 0.2], [0.9, 0.2], [0.2, 0.9], [0.1, 0.1]])
    after = np.array([[0.1, 0.2], [0.9, 0.7], [0.2, 0.8], [0.1, 0.1]])
    got = grade(images, twins, before, after, np.array([0, 1, 1, 0]), masks=masks, twins=twins, task="multi-label")
    assert got["validity"] == 0.5  # removed, added, not removed, not added
    assert got["confidence_gain"] == pytest.approx((0.8 + 0.5 + 0.1 + 0) / 4)
    assert got["num_lesions"] == 2  # scans 0 and 2 are ill, and their label should go


@pytest.mark.parametrize("with_truth", [True, False])
def test_merging_equals_grading_in_one_place(with_truth: bool) -> None:
    images, masks, twins = scans(30)
    edited = np.clip(images + RNG.integers(-15, 15, images.shape), 0, 255).astype(np.uint8)
    before, after = two_class(RNG.random(30)), two_class(RNG.random(30))
    targets, found = RNG.integers(0, 2, 30), RNG.random(30) < 0.7

    def graded(i):  # type: ignore[no-untyped-def]
        truth = {"masks": masks[i], "twins": twins[i]} if with_truth else {}
        return grade(images[i], edited[i], before[i], after[i], targets[i], found=found[i], **truth,
                     referee=lambda x: two_class(x.mean((1, 2, 3)) / 255), seconds_per_image=0.1)  # fmt: skip

    parts = [graded(slice(0, 4)), graded(slice(4, 21)), graded(slice(21, 30))]
    whole = graded(slice(None))
    assert merge_grades(parts) == pytest.approx(whole)
    assert merge_grades([merge_grades(parts[1:]), parts[0]]) == pytest.approx(whole)


def test_dilation_is_a_square_that_stops_at_the_border() -> None:
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 0, 3] = True
    grown = dilate(mask, 2)[0]
    assert grown[:3, 1:].all() and grown.sum() == 15


@pytest.mark.parametrize(("change", "message"), [
    ({"edited": np.zeros((4, 20, 20, 1))}, "uint8"),
    ({"edited": np.zeros((3, 20, 20, 1), np.uint8)}, "uint8"),
    ({"probs_after": np.zeros((4, 3))}, "Probabilities"),
    ({"targets": np.full(4, 2)}, "Targets"),
    ({"masks": np.zeros((4, 20, 19), bool)}, "masks"),
    ({"twins": np.zeros((4, 20, 19, 1), np.uint8)}, "twins"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    images, _, _ = scans(4)
    probs = two_class(np.full(4, 0.5))
    fine = {"originals": images, "edited": images, "probs_before": probs, "probs_after": probs}
    fine["targets"] = np.ones(4, int)
    with pytest.raises(ValueError, match=message):
        grade(**(fine | change))
