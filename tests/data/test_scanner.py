"""The site shift."""

from __future__ import annotations

import numpy as np

from jointdiff.data import phantom
from jointdiff.data.scanner import Scanner, draw_scanner, render, render_set

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
