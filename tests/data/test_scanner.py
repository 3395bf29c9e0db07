"""The site shift."""

from __future__ import annotations

import numpy as np

from jointdiff.data import phantom
from jointdiff.data.scanner import Scanner, draw_scanner, render, render_set, seen_abroad

SCANS = phantom.load_phantom(sizes={"train": 20, "val": 1, "test": 1}).train


def test_a_perfect_scanner_changes_nothing() -> None:
    np.testing.assert_array_equal(render(SCANS.images, Scanner(), seed=0), SCANS.images)


def test_each_part_does_what_its_name_says() -> None:
    images = SCANS.images.astype(float)
    darker = render(SCANS.images, Scanner(gain=0.5), seed=0)
    assert np.abs(darker - images / 2).max() <= 0.5 + 1e-3
    assert (render(SCANS.images, Scanner(gamma=2.0), seed=0) <= SCANS.images).all()
    blurred = render(SCANS.images, Scanner(blur=1.0), seed=0).astype(float)
    assert np.abs(np.diff(blurred, axis=2)).mean() < 0.7 * np.abs(np.diff(images, axis=2)).mean()
    grey = np.full((50, 28, 28, 1), 128, dtype=np.uint8)
    assert abs(render(grey, Scanner(noise=0.02), seed=0).std() - 0.02 * 255) < 0.3


def test_hospitals_have_scanners_of_their_own() -> None:
    scanners = {draw_scanner(hospital, seed=0) for hospital in range(5)}
    assert len(scanners) == 5 and draw_scanner(2, seed=0) in scanners and draw_scanner(2, seed=1) not in scanners


def test_twins_still_differ_in_the_mask_alone() -> None:
    shifted = render_set(SCANS, Scanner(gain=1.1, gamma=0.8, blur=0.6, noise=0.03), seed=0)
    assert shifted.masks is not None and shifted.twins is not None and SCANS.masks is not None
    np.testing.assert_array_equal(shifted.images[~shifted.masks], shifted.twins[~shifted.masks])
    assert (shifted.masks >= SCANS.masks).all()
    healthy = SCANS.labels == 0
    assert not shifted.masks[healthy].any()


def test_abroad_every_image_is_shown_by_every_scanner_and_keeps_its_label() -> None:
    shown = seen_abroad(SCANS, 3, seed=(0, 1))
    assert len(shown) == 3 * len(SCANS)
    np.testing.assert_array_equal(shown.labels, np.tile(SCANS.labels, 3))
    assert shown.masks is not None and shown.twins is not None and shown.sources is None
    looks = shown.images.reshape(3, len(SCANS), -1).astype(float)
    levels = looks.mean(axis=(1, 2))
    assert len({round(level) for level in levels}) == 3  # each has its own brightness
    for look in looks:  # and none changes what is shown
        assert np.corrcoef(look.ravel(), SCANS.images.ravel())[0, 1] > 0.9
    np.testing.assert_array_equal(seen_abroad(SCANS, 2, seed=(0, 1)).images, shown.images[: 2 * len(SCANS)])
    assert (seen_abroad(SCANS, 1, seed=(1, 1)).images != shown.images[: len(SCANS)]).any()
