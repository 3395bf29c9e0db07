"""Grades by hand on edits whose truth is known, and merging that equals grading in one place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdiff.config import ModelConfig
from jointdiff.cout import cout
from jointdiff.fidelity import FeatureNet, kid
from jointdiff.grading import grade, grade_scans, merge_grades
from jointdiff.lesion_grades import dilate
from jointdiff.model import JointModel
from jointdiff.realism import KidSide, denoising_losses, grouped_kid
from jointdiff.schedule import cosine_alpha_bar

RNG = np.random.default_rng(0)


def scans(n: int = 12, channels: int = 1):  # type: ignore[no-untyped-def]
    """Ill scans (even) with a square lesion, healthy ones (odd), their masks and twins."""
    twins = RNG.integers(60, 120, (n, 20, 20, channels)).astype(np.uint8)
    masks = np.zeros((n, 20, 20), bool)
    masks[::2, 6:10, 8:12] = True
    return np.where(masks[..., None], twins + 100, twins).astype(np.uint8), masks, twins


def two_class(p: np.ndarray) -> np.ndarray:
    return np.stack([1 - p, p], 1)


def by_brightness(images: np.ndarray) -> np.ndarray:
    """A classifier: p(1) = mean brightness."""
    return two_class(images.mean((1, 2, 3)) / 255)


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
    losses = RNG.random((2, 30))

    def graded(i):  # type: ignore[no-untyped-def]
        truth = {"masks": masks[i], "twins": twins[i]} if with_truth else {}
        return grade(images[i], edited[i], before[i], after[i], targets[i], found=found[i], **truth,
                     referee=by_brightness, predict=by_brightness, denoising_losses=(losses[0][i], losses[1][i]),
                     seconds_per_image=0.1)  # fmt: skip

    parts = [graded(slice(0, 4)), graded(slice(4, 21)), graded(slice(21, 30))]
    whole = graded(slice(None))
    assert {"cout", "denoising_loss"} <= set(whole) and ("pointing" in whole) == with_truth
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
    ({"labels": np.zeros((4, 3), int)}, "labels"),
    ({"denoising_losses": (np.zeros(4), np.zeros(3))}, "denoising_losses"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    images, _, _ = scans(4)
    probs = two_class(np.full(4, 0.5))
    fine = {"originals": images, "edited": images, "probs_before": probs, "probs_after": probs}
    fine["targets"] = np.ones(4, int)
    with pytest.raises(ValueError, match=message):
        grade(**(fine | change))


def corner(images: np.ndarray) -> np.ndarray:
    """A classifier that looks at one pixel alone."""
    return two_class((images[:, 0, 0, 0] > 127).astype(float))


@pytest.mark.parametrize(("at_corner", "elsewhere", "expected"), [(200, 50, 0.75), (130, 255, -0.75)])
def test_cout_says_whether_the_strongest_changes_carry_the_decision(
    at_corner: int, elsewhere: int, expected: float
) -> None:
    """In four steps of four pixels the curve is -1, 1, 1, 1, 1 if the pixel comes first, -1, -1, -1, -1, 1 if last."""
    black = np.zeros((2, 4, 4, 1), np.uint8)
    edited = np.full_like(black, elsewhere)
    edited[:, 0, 0] = at_corner
    for task in ("multi-class", "multi-label"):
        got = cout(black, edited, np.array([1, 1]), corner, task=task, num_steps=4)
        assert got.tolist() == [expected, expected]
    back = cout(edited, black, np.array([1, 0]), corner, task="multi-label", num_steps=4)
    assert back.tolist() == [expected, expected], "a label that is removed"


def test_cout_is_the_area_between_two_curves_made_one_by_one() -> None:
    originals, edited = RNG.integers(0, 256, (2, 5, 6, 7, 3)).astype(np.uint8)
    weights = RNG.normal(size=(6 * 7 * 3, 3)) / 300

    def predict(images: np.ndarray) -> np.ndarray:
        e = np.exp(images.reshape(len(images), -1) @ weights)
        return e / e.sum(1, keepdims=True)

    targets = np.array([0, 1, 2, 0, 1])
    for i, got in enumerate(cout(originals, edited, targets, predict, num_steps=5)):
        source = predict(originals[i : i + 1])[0].argmax()
        change = [(-int(np.abs(edited[i, y, x].astype(int) - originals[i, y, x]).sum()), y, x)
                  for y in range(6) for x in range(7)]  # fmt: skip
        image, areas, last = originals[i].copy(), np.zeros(3), predict(originals[i : i + 1])[0]
        pixels = iter(sorted(change))
        for step in range(1, 6):
            for _ in range(round(step * 42 / 5) - round((step - 1) * 42 / 5)):
                _, y, x = next(pixels)
                image[y, x] = edited[i, y, x]
            now = predict(image[None])[0]
            areas += (last + now) / 2 / 5
            last = now
        assert np.array_equal(image, edited[i])
        assert got == pytest.approx(areas[targets[i]] - areas[source])


def test_cout_of_the_decision_that_is_there_already_is_zero() -> None:
    images, _, _ = scans(4)
    targets = by_brightness(images).argmax(axis=1)
    assert not cout(images, 255 - images, targets, by_brightness).any()


def test_the_grade_asks_cout_of_found_edits_alone() -> None:
    images, _, _ = scans(4)
    found = np.array([True, False, True, False])
    probs = two_class(np.full(4, 0.5))
    got = grade(images, 255 - images, probs, probs, np.ones(4, int), found=found, predict=by_brightness)
    expected = cout(images[found], 255 - images[found], np.ones(2, int), by_brightness)
    assert got["cout"] == pytest.approx(expected.mean()) and expected.mean() != 0


def test_the_pointing_game_looks_at_the_strongest_change_alone() -> None:
    images, masks, twins = scans(4)
    probs = two_class(np.full(4, 0.5))
    edited = images.astype(int)
    edited[:, 12:, :] += 10  # most of the edit is elsewhere
    edited[0, 5, 9] += 30  # beside the lesion of scan 0, within the margin
    edited[2, 5, 9] += 30
    edited[2, 17, 9] += 20  # as strong, and far away
    got = grade(images, edited.astype(np.uint8), probs, probs, np.zeros(4, int), masks=masks, twins=twins)
    assert got["num_lesions"] == 2 and got["lesion_share"] < 0.1
    assert got["pointing"] == 0.75  # scan 0 hits; of scan 2's two strongest pixels one does


def test_the_losses_are_averaged_over_found_edits() -> None:
    images, _, _ = scans(4)
    probs = two_class(np.full(4, 0.5))
    losses = np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 40])
    found = np.array([True, True, False, False])
    got = grade(images, images, probs, probs, np.ones(4, int), found=found, denoising_losses=losses)
    assert (got["denoising_loss_originals"], got["denoising_loss"]) == (1.5, 15.0)


def kid_graded(edited: np.ndarray, targets: np.ndarray, labels: np.ndarray, images: np.ndarray, **more):  # type: ignore[no-untyped-def]
    probs = two_class(np.full(len(images), 0.5))
    return grade_scans(images, edited, probs, probs, targets, labels=labels, features=FeatureNet(1).features, **more)


def test_kid_compares_edits_with_real_scans_of_the_class_they_aim_at() -> None:
    images, masks, twins = scans(60)
    labels = masks.any((1, 2)).astype(int)
    targets = 1 - labels
    other = images.copy()  # ill ones healed, healthy ones made ill
    other[labels == 1] = twins[labels == 1]
    other[labels == 0, 6:10, 8:12] += 100
    healed, same = (kid_graded(e, targets, labels, images).means() for e in (other, images))
    assert abs(healed["kid"]) < 4 * healed["kid_error"] < same["kid"]
    assert healed["num_kid"] == 60
    net = FeatureNet(1)
    towards = {k: kid(net.features(other[targets == k]), net.features(images[labels == k])) for k in (0, 1)}
    assert healed["kid"] == pytest.approx((towards[0].value + towards[1].value) / 2)
    assert healed["kid_error"] == pytest.approx(np.hypot(*(t.standard_error for t in towards.values())) / 2)
    ill = kid_graded(other, targets, labels, images).means(targets == 1)
    assert ill["kid"] == pytest.approx(towards[1].value) and ill["num_kid"] == 30


def test_kid_is_left_out_where_scans_are_few_unknown_or_the_edits_own() -> None:
    images, masks, _ = scans(40)
    labels = masks.any((1, 2)).astype(int)
    assert "kid" in kid_graded(images, 1 - labels, labels, images).means()
    few = np.where(np.arange(40) < 18, labels, -1)
    for targets, known, found in (
        (labels, labels, None),  # every scan of the class is the original of one of the edits
        (1 - labels, few, None),
        (1 - labels, labels, np.arange(40) < 18),
    ):
        got = kid_graded(images, targets, known, images, found=found).means()
        assert not {"kid", "kid_error", "num_kid"} & set(got)


def test_kid_of_several_labels_compares_with_scans_that_have_the_wanted_answer() -> None:
    images, _, _ = scans(48)
    labels = np.stack([np.arange(48) % 2, np.arange(48) // 2 % 2], axis=1)
    probs = 0.1 + 0.8 * labels
    targets = np.ones(48, int)
    got = grade(images, images, probs, probs, targets, labels=labels, features=FeatureNet(1).features,
                task="multi-label")  # fmt: skip
    features, shows = FeatureNet(1).features(images), labels[:, 1]
    both = [kid(features[shows == a], features[shows == 1 - a]).value for a in (0, 1)]
    assert got["kid"] == pytest.approx(np.mean(both)) and got["num_kid"] == 48


def test_errors_of_kid_merge_as_those_of_independent_estimates() -> None:
    parts = [{"kid": 0.2, "kid_error": 0.03, "num_kid": 10.0}, {"kid": 0.4, "kid_error": 0.04, "num_kid": 10.0}]
    assert merge_grades(parts) == pytest.approx({"kid": 0.3, "kid_error": 0.025, "num_kid": 20.0})


def test_groups_too_small_are_no_part_of_kid() -> None:
    features, ids = RNG.normal(size=(40, 5)), np.arange(40)
    groups = np.repeat([0, 1, 2], [20, 15, 5])
    first, second = KidSide(features, groups, ids), KidSide(RNG.normal(size=(40, 5)), groups, ids + 40)
    found = grouped_kid(first, second)
    assert found is not None and found[2] == 35
    assert grouped_kid(first.select(groups == 2), second) is None


def test_a_chosen_part_is_graded_as_by_itself() -> None:
    images, masks, twins = scans(20)
    edited = np.clip(images + RNG.integers(-15, 15, images.shape), 0, 255).astype(np.uint8)
    before, after = two_class(RNG.random(20)), two_class(RNG.random(20))
    targets, found = RNG.integers(0, 2, 20), RNG.random(20) < 0.7

    def graded(i):  # type: ignore[no-untyped-def]
        return grade_scans(images[i], edited[i], before[i], after[i], targets[i], found=found[i], masks=masks[i],
                           twins=twins[i], predict=by_brightness)  # fmt: skip

    for chosen in (targets == 0, targets == 1):
        assert graded(slice(None)).means(chosen) == pytest.approx(graded(chosen).means())
    edited[2] = images[3]
    alone = np.arange(20) == 2
    found[2] = True
    assert graded(slice(None)).means(alone)["identity"] == 0, "the others stay originals to be mistaken for"


def test_the_denoising_loss_is_the_models_own_and_compares_on_the_same_noise() -> None:
    config = ModelConfig(width=8, multipliers=(1,), attention_levels=(), patch_size=2, image_size=20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JointModel(config).eval()
    for p in model.parameters():
        p.data.mul_(0)  # the network says zero: the loss is the mean square of what it should say
    images, _, _ = scans(5)
    images[0] = 127

    def losses(part: np.ndarray, prediction: str, seed: int = 0, **more):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(seed)
        return denoising_losses(model, part, cosine_alpha_bar(1000), prediction=prediction, generator=generator, **more)

    noise = losses(images, "eps")
    assert noise == pytest.approx(np.ones(5), abs=0.15)
    assert np.array_equal(noise, losses(255 - images, "eps")) and not np.array_equal(noise, losses(images, "eps", 1))
    v = losses(images, "v", batch_size=2)
    assert v[0] < noise[0] and len(v) == 5, "a grey scan adds nothing to v, and noise counts by its share"
    assert losses(images[:0], "v").shape == (0,)
