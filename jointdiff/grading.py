"""Grades of counterfactual explanations, whatever method made them.

A counterfactual is an edit of a scan that should make the classifier say `target`. That it does proves little: an
adversarial perturbation does too. So the grades ask besides: does an independent referee agree, how small is the edit,
is it still the same patient, and (phantoms alone) does it lie on the lesion and lead to the true healthy twin?

Grades are flat scalars beside the counts they are means over, so that `merge_grades` of hospitals is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

# name -> the count it is a mean over
MEAN_OVER = {
    "validity": "num_scans",  # share found, and given the target by the model
    "found_share": "num_scans",  # share of scans for which the method says that it found an edit
    "confidence_gain": "num_scans",  # rise of the target's probability
    "seconds_per_image": "num_scans",
    "referee_validity": "num_refereed",  # share found, and given the target by the referee
    "referee_accuracy": "num_scans",  # of the referee on the hospital's test images: what its word is worth
    "l1": "num_found",  # mean absolute difference per pixel; 1 = the whole range of brightness
    "l2": "num_found",  # root of the mean squared difference per pixel, same unit
    "changed_share": "num_found",  # share of pixels changed by more than 5% of the range
    "identity": "num_found",  # share whose nearest original is its own
    "lesion_share": "num_lesions",  # share of the absolute edit on the lesion and 2 px around it
    "lesion_area_share": "num_lesions",  # share of the image that this area covers: lesion_share by chance
    "twin_distance_ratio": "num_lesions",  # distance to the true healthy twin, edited / original: 0 = healed
}
CHANGE_THRESHOLD = 0.05  # of the range of brightness
LESION_MARGIN = 2  # pixels
_HEALTHY = 0  # class of the phantoms' twins


def grade(
    originals: np.ndarray,
    edited: np.ndarray,
    probs_before: np.ndarray,
    probs_after: np.ndarray,
    targets: np.ndarray,
    *,
    found: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    twins: np.ndarray | None = None,
    referee: Callable[[np.ndarray], np.ndarray] | None = None,
    seconds_per_image: float | None = None,
    task: str = "multi-class",
) -> dict[str, float]:
    """Grade edits of scans.

    Args:
        originals, edited: uint8 [N, H, W, C].
        probs_before, probs_after: [N, K] of the model that is explained, on the originals and on the edits.
        targets: [N] class that each edit should reach; multi-label: the label whose answer it should turn over.
        found: bool [N], False where the method itself says that it found no edit: that counts against `validity` and
            `referee_validity`, and leaves the scan out of the grades of edits. None = all found.
        masks: bool [N, H, W], the true lesions; empty where there is none. None = not known.
        twins: uint8 [N, H, W, C], the same scans without lesions. None = not known.
        referee: Takes uint8 [N, H, W, C], gives probabilities [N, K].
        seconds_per_image: Of making the edits.
        task: multi-class or multi-label.

    Returns:
        Means by name (MEAN_OVER) and the counts beside them; a grade that nothing can be said of is left out.
        The lesion's grades are over ill-to-healthy edits that were found and changed something.

    Raises:
        ValueError: The shapes do not fit.
    """
    n = len(originals)
    found = np.ones(n, bool) if found is None else np.asarray(found, bool)
    _check_shapes(originals, edited, probs_before, probs_after, targets, found, masks, twins)
    rows = np.arange(n)
    wanted = probs_before[rows, targets] < 0.5 if task == "multi-label" else np.ones(n, bool)
    reached = _reached(probs_after, targets, wanted, task)
    gain = (probs_after[rows, targets] - probs_before[rows, targets]) * np.where(wanted, 1, -1)
    per_scan = {"validity": reached & found, "found_share": found, "confidence_gain": gain}
    if seconds_per_image is not None:
        per_scan["seconds_per_image"] = np.full(n, seconds_per_image)
    if referee is not None and n:
        per_scan["referee_validity"] = _reached(referee(edited), targets, wanted, task) & found
    difference = (edited[found].astype(np.float64) - originals[found]) / 255
    per_scan["l1"] = np.abs(difference).mean((1, 2, 3))
    per_scan["l2"] = np.sqrt((difference**2).mean((1, 2, 3)))
    per_scan["changed_share"] = (np.abs(difference).max(axis=3, initial=0) > CHANGE_THRESHOLD).mean((1, 2))
    per_scan["identity"] = _own_is_nearest(edited, originals)[found]
    if masks is not None:
        healed = ~wanted if task == "multi-label" else targets == _HEALTHY
        some_edit = np.zeros(n, bool)
        some_edit[found] = np.abs(difference).sum((1, 2, 3)) > 0
        per_scan |= _lesion_grades(originals, edited, masks, twins, masks.any((1, 2)) & healed & some_edit)
    counts = {MEAN_OVER[name]: float(len(values)) for name, values in per_scan.items()}
    means = {name: float(np.mean(values)) for name, values in per_scan.items() if len(values)}
    return means | counts


def merge_grades(grades: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the grades of all scans together, as if they had been graded in one place.

    `identity` alone is not quite that: each hospital compares with its own scans only.

    >>> merge_grades([{"l1": 0.1, "num_found": 3.0}, {"l1": 0.5, "num_found": 1.0}, {"num_found": 0.0}])
    {'l1': 0.2, 'num_found': 4.0}
    """
    parts = list(grades)
    merged: dict[str, float] = {}
    for name, count in MEAN_OVER.items():
        known = [(part[name], part[count]) for part in parts if name in part and part.get(count, 0) > 0]
        if known:
            merged[name] = round(sum(v * c for v, c in known) / sum(c for _, c in known), 12)
    for count in dict.fromkeys(MEAN_OVER.values()):
        if any(count in part for part in parts):
            merged[count] = sum(part.get(count, 0.0) for part in parts)
    return merged


def dilate(masks: np.ndarray, margin: int) -> np.ndarray:
    """Grow masks, bool [N, H, W], by `margin` pixels in every direction (a square).

    >>> dilate(np.eye(1, 5, 2, dtype=bool)[None], 1).astype(int).tolist()
    [[[0, 1, 1, 1, 0]]]
    """
    _, h, w = masks.shape
    padded = np.pad(masks, ((0, 0), (margin, margin), (margin, margin)))
    shifts = range(2 * margin + 1)
    return np.logical_or.reduce([padded[:, i : i + h, j : j + w] for i in shifts for j in shifts])


def _reached(probs: np.ndarray, targets: np.ndarray, wanted: np.ndarray, task: str) -> np.ndarray:
    if task == "multi-label":
        return (probs[np.arange(len(probs)), targets] > 0.5) == wanted
    return probs.argmax(axis=1) == targets


def _own_is_nearest(edited: np.ndarray, originals: np.ndarray, chunk: int = 256) -> np.ndarray:
    """Return bool [N]: no original is nearer (L2 on pixels) to an edit than its own; a copy of its own is no nearer."""
    flat = originals.reshape(len(originals), -1).astype(np.float64)
    norms = (flat**2).sum(1)
    own = np.zeros(len(edited), bool)
    for start in range(0, len(edited), chunk):
        part = edited[start : start + chunk].reshape(-1, flat.shape[1]).astype(np.float64)
        # |e|^2 is the same for all originals and left out; whole numbers in float64 are exact, so ties are ties.
        distance = norms[None] - 2 * part @ flat.T
        rows = np.arange(len(part))
        own[start : start + chunk] = distance[rows, start + rows] <= distance.min(1)
    return own


def _lesion_grades(
    originals: np.ndarray, edited: np.ndarray, masks: np.ndarray, twins: np.ndarray | None, graded: np.ndarray
) -> dict[str, np.ndarray]:
    before, after = originals[graded].astype(np.float64), edited[graded].astype(np.float64)
    area = dilate(masks[graded], LESION_MARGIN)
    edit = np.abs(after - before).sum(3)
    shares = {
        "lesion_share": (edit * area).sum((1, 2)) / edit.sum((1, 2)),
        "lesion_area_share": area.mean((1, 2)),
    }
    if twins is not None:
        twin = twins[graded].astype(np.float64)
        start = np.sqrt(((before - twin) ** 2).sum((1, 2, 3)))
        # A lesion too faint for one grey level leaves a twin equal to the scan: the ratio stays finite.
        ratio = np.sqrt(((after - twin) ** 2).sum((1, 2, 3))) / np.maximum(start, 1)
        shares["twin_distance_ratio"] = ratio
    return shares


def _check_shapes(
    originals: np.ndarray, edited: np.ndarray, before: np.ndarray, after: np.ndarray, targets: np.ndarray,
    found: np.ndarray, masks: np.ndarray | None, twins: np.ndarray | None,
) -> None:  # fmt: skip
    n = len(originals)
    both_uint8 = originals.dtype == np.uint8 and edited.dtype == np.uint8
    if originals.ndim != 4 or not both_uint8 or edited.shape != originals.shape:
        raise ValueError(
            "originals and edited must both be uint8 [N, H, W, C], not "
            f"{originals.dtype} {originals.shape} and {edited.dtype} {edited.shape}."
        )
    if before.ndim != 2 or before.shape != after.shape or {len(before), *targets.shape, *found.shape} != {n}:
        raise ValueError(f"Probabilities must be [N, K], targets and found [N], with N = {n}.")
    if n and (targets.min() < 0 or targets.max() >= before.shape[1]):
        raise ValueError(f"Targets must lie in 0..{before.shape[1] - 1}.")
    if masks is not None and masks.shape != originals.shape[:3]:
        raise ValueError(f"masks must have shape {originals.shape[:3]}, not {masks.shape}.")
    if twins is not None and twins.shape != originals.shape:
        raise ValueError(f"twins must have shape {originals.shape}, not {twins.shape}.")
