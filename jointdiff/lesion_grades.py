"""Grades of edits against a known truth: phantoms have a lesion mask and a healthy twin."""

from __future__ import annotations

import numpy as np

LESION_MARGIN = 2  # pixels


def lesion_grades(
    originals: np.ndarray, edited: np.ndarray, masks: np.ndarray, twins: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Grade edits that should heal.

    Args:
        originals, edited: uint8 [M, H, W, C]; every edit changes something.
        masks: bool [M, H, W], no empty one.
        twins: uint8 [M, H, W, C], the same scans without lesions. None = not known.

    Returns:
        [M] each: lesion_share, lesion_area_share, pointing (1 where the strongest change lies on the lesion; where
        several pixels share the strongest, the share of them that do), twin_distance_ratio.
    """
    before, after = originals.astype(np.float64), edited.astype(np.float64)
    area = dilate(masks, LESION_MARGIN)
    edit = np.abs(after - before).sum(axis=3)
    strongest = edit == edit.max(axis=(1, 2), keepdims=True, initial=0)
    found = {
        "lesion_share": (edit * area).sum((1, 2)) / edit.sum((1, 2)),
        "lesion_area_share": area.mean((1, 2)),
        "pointing": (strongest & area).sum((1, 2)) / strongest.sum((1, 2)),
    }
    if twins is not None:
        twin = twins.astype(np.float64)
        start = np.sqrt(((before - twin) ** 2).sum((1, 2, 3)))
        # A lesion too faint for one grey level leaves a twin equal to the scan: the ratio stays finite.
        found["twin_distance_ratio"] = np.sqrt(((after - twin) ** 2).sum((1, 2, 3))) / np.maximum(start, 1)
    return found


def dilate(masks: np.ndarray, margin: int) -> np.ndarray:
    """Grow masks, bool [N, H, W], by `margin` pixels in every direction (a square).

    >>> dilate(np.eye(1, 5, 2, dtype=bool)[None], 1).astype(int).tolist()
    [[[0, 1, 1, 1, 0]]]
    """
    _, h, w = masks.shape
    padded = np.pad(masks, ((0, 0), (margin, margin), (margin, margin)))
    shifts = range(2 * margin + 1)
    return np.logical_or.reduce([padded[:, i : i + h, j : j + w] for i in shifts for j in shifts])
