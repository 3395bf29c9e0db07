"""A generator that returns training images is caught, one that returns fresh images is not."""

from __future__ import annotations

import numpy as np
import pytest

from jointdiff.attacks.copies import also_in, measure_copies, nearest, repeats
from jointdiff.data.phantom import load_phantom


@pytest.fixture(scope="module")
def scans() -> np.ndarray:
    return load_phantom(image_size=16, sizes={"train": 500, "val": 1, "test": 1}).train.images


def test_returned_training_images_are_all_copies(scans: np.ndarray) -> None:
    training, heldout = scans[:300], scans[300:400]
    found = measure_copies(training[:40], training, heldout)
    assert (found.copied.value, found.num_exact) == (1.0, 40)
    assert all(m.below_percentile.value == 1 and m.below_all.value == 1 for m in found.measures)
    assert [m.measure for m in found.measures] == ["pixels", "pixels, relative", "features", "features, relative"]
    np.testing.assert_array_equal(found.nearest, np.arange(40))


def test_mirrored_and_slightly_noisy_copies_are_copies(scans: np.ndarray) -> None:
    training, heldout = scans[:300], scans[300:400]
    noise = np.random.default_rng(0).normal(0, 2, training[:40].shape)
    noisy = np.clip(training[:40, :, ::-1] + noise, 0, 255).astype(np.uint8)
    found = measure_copies(noisy, training, heldout)
    assert found.copied.value == 1 and found.num_exact == 0
    np.testing.assert_array_equal(found.nearest, np.arange(40))


def test_a_few_copies_among_fresh_images_are_the_most_suspicious(scans: np.ndarray) -> None:
    samples = np.concatenate([scans[400:], scans[:3]])
    found = measure_copies(samples, scans[:300], scans[300:400])
    assert set(found.closest[:3].tolist()) == {100, 101, 102}
    assert found.num_exact == 3 and 0.02 < found.copied.value < 0.08


def test_fresh_images_of_the_same_source_are_no_copies(scans: np.ndarray) -> None:
    found = measure_copies(scans[400:], scans[:300], scans[300:400])
    assert found.copied.low < 0.01 and found.copied.value <= 0.02 and found.num_exact == 0
    assert all(m.below_percentile.low < 0.02 for m in found.measures)


def test_a_smooth_picture_is_near_in_pixels_but_not_relatively(scans: np.ndarray) -> None:
    """The mean image is nearer to everything than real images are to each other, and copies nobody."""
    mean = scans[:300].mean(axis=0).round().astype(np.uint8)
    found = measure_copies(mean[None], scans[:300], scans[300:400])
    by_name = {m.measure: m for m in found.measures}
    assert by_name["pixels"].median_samples < by_name["pixels"].median_heldout
    assert by_name["pixels, relative"].below_percentile.value == 0 and found.copied.value == 0


def test_nearest_by_brute_force() -> None:
    draws = np.random.default_rng(0)
    queries, references = draws.normal(size=(300, 5)), draws.normal(size=(80, 5))
    queries[0] = references[7]
    everything = np.sqrt(((queries[:, None] - references) ** 2).sum(axis=2))
    distance, relative, row = nearest(queries, references)
    np.testing.assert_array_equal(row, everything.argmin(axis=1))
    np.testing.assert_allclose(distance, everything.min(axis=1))
    np.testing.assert_allclose(relative, everything.min(axis=1) / np.sort(everything, axis=1)[:, :50].mean(axis=1))
    assert (distance[0], relative[0], row[0]) == (0, 0, 7)


def test_equal_images_are_counted(scans: np.ndarray) -> None:
    images = scans[[0, 1, 0, 0, 2]]
    assert repeats(images) == 2 and repeats(scans[:1]) == 0
    assert also_in(scans[:3], images[1:]).tolist() == [True, True, True]
    assert also_in(scans[:3], images[1:2]).tolist() == [False, True, False]


def test_an_empty_set_is_refused(scans: np.ndarray) -> None:
    with pytest.raises(ValueError, match="0 held-out"):
        measure_copies(scans[:2], scans[:2], scans[:0])
