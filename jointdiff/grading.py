"""Grades of counterfactual explanations, whatever method made them.

A counterfactual is an edit of a scan that should make the classifier say `target`. That it does proves little: an
adversarial perturbation does too. So the grades ask besides: does an independent referee agree, how small is the edit,
does it look real, do few pixels carry it, is it still the same patient, and (phantoms alone) does it lie
on the lesion and lead to the true healthy twin? What the numbers are worth is said by controls (`controls.py`).

Grades are flat scalars beside the counts they are means over, so that `merge_grades` of hospitals is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from jointdiff.cout import Predict, cout
from jointdiff.lesion_grades import lesion_grades
from jointdiff.realism import KidSide, grouped_kid

# name -> the count it is a mean over
MEAN_OVER = {
    "validity": "num_scans",  # share found, and given the target by the model
    "found_share": "num_scans",  # share of scans for which the method says that it found an edit
    "confidence_gain": "num_scans",  # rise of the target's probability
    "seconds_per_image": "num_scans",
    "decoded_agreement": "num_scans",  # latent runs: share whose decision the autoencoder's decoding leaves as it was
    "decoded_l1": "num_scans",  # latent runs: mean absolute difference of a scan and its decoding: the loss by encoding
    "scan_l1": "num_scans",  # latent runs: the same of a scan and the edit of its decoding: loss and edit together
    "referee_validity": "num_refereed",  # share found, and given the target by the referee
    "referee_accuracy": "num_scans",  # of the referee on the hospital's test images: what its word is worth
    "l1": "num_found",  # mean absolute difference per pixel; 1 = the whole range of brightness
    "l2": "num_found",  # root of the mean squared difference per pixel, same unit
    "changed_share": "num_found",  # share of pixels changed by more than 5% of the range
    "identity": "num_found",  # share whose nearest original is its own
    "cout": "num_found",  # area between the target's and the source's curve as pixels are put in, -1 to 1
    "denoising_loss": "num_found",  # of the edits under the model
    "denoising_loss_originals": "num_found",  # of the same scans before the edit
    "lesion_share": "num_lesions",  # share of the absolute edit on the lesion and 2 px around it
    "lesion_area_share": "num_lesions",  # share of the image that this area covers: the next and the last, by chance
    "pointing": "num_lesions",  # share whose strongest change lies on that area: the pointing game
    "twin_distance_ratio": "num_lesions",  # distance to the true healthy twin, edited / original: 0 = healed
    "kid": "num_kid",  # between edits and other scans that truly are of the class they aim at
    "kid_error": "num_kid",  # its standard error
}
CHANGE_THRESHOLD = 0.05  # of the range of brightness
_HEALTHY = 0  # class of the phantoms' twins


@dataclass(frozen=True)
class ScanGrades:
    """Grades of every scan, before they are averaged; `means` averages all or some of them."""

    values: Mapping[str, np.ndarray]  # by name, float64 [N]; of no meaning where the grade says nothing
    applies: Mapping[str, np.ndarray]  # by count (MEAN_OVER), bool [N]: where its grades say something
    aims: np.ndarray  # int64 [N]: the class aimed at; multi-label: 2 * label + 1 to show the finding, + 0 to remove it
    kid_sides: tuple[KidSide, KidSide] | None = None  # all edits, and original scans under what they truly show

    def means(self, chosen: np.ndarray | None = None) -> dict[str, float]:
        """Return means by name and the counts beside them; a grade that nothing can be said of is left out.

        Args:
            chosen: bool [N], the scans that count; the others stay originals that `identity` and `kid` compare with.
                None = all.
        """
        chosen = np.ones(len(self.aims), bool) if chosen is None else chosen
        over = {count: where & chosen for count, where in self.applies.items()}
        counts = {count: float(where.sum()) for count, where in over.items()}
        means = {
            name: float(values[over[MEAN_OVER[name]]].mean())
            for name, values in self.values.items()
            if counts[MEAN_OVER[name]]
        }
        return means | self._kid(over["num_found"]) | counts

    def _kid(self, edits: np.ndarray) -> dict[str, float]:
        if self.kid_sides is None:
            return {}
        found = grouped_kid(self.kid_sides[0].select(edits), self.kid_sides[1])
        return {} if found is None else dict(zip(("kid", "kid_error", "num_kid"), map(float, found), strict=True))


def grade_scans(
    originals: np.ndarray,
    edited: np.ndarray,
    probs_before: np.ndarray,
    probs_after: np.ndarray,
    targets: np.ndarray,
    *,
    found: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    twins: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    referee: Predict | None = None,
    predict: Predict | None = None,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
    denoising_losses: tuple[np.ndarray, np.ndarray] | None = None,
    seconds_per_image: float | None = None,
    task: str = "multi-class",
) -> ScanGrades:
    """Grade edits of scans, one by one; `grade` gives the means at once.

    Args:
        originals, edited: uint8 [N, H, W, C].
        probs_before, probs_after: [N, K] of the model that is explained, on the originals and on the edits.
        targets: [N] class that each edit should reach; multi-label: the label whose answer it should turn over.
        found: bool [N], False where the method itself says that it found no edit: that counts against `validity` and
            `referee_validity`, and leaves the scan out of the grades of edits. None = all found.
        masks: bool [N, H, W], the true lesions; empty where there is none. None = not known.
        twins: uint8 [N, H, W, C], the same scans without lesions. None = not known.
        labels: int [N] or [N, L], what the originals show; -1 = unknown. Needed by `kid` alone. None = not known.
        referee: Takes uint8 [N, H, W, C], gives probabilities [N, K].
        predict: The same of the model that is explained: needed by `cout` alone, which asks often.
        features: Takes uint8 [N, H, W, C], gives features [N, D]: needed by `kid` alone (fidelity.FeatureNet).
        denoising_losses: Of the originals and of the edits, [N] each (realism.denoising_losses).
        seconds_per_image: Of making the edits.
        task: multi-class or multi-label.

    Returns:
        The grades of MEAN_OVER that can be given. The lesion's are over ill-to-healthy edits that were found and
        changed something; `kid` needs 10 edits that aim at a class, and 10 other scans of it.

    Raises:
        ValueError: The shapes do not fit.
    """
    n = len(originals)
    found = np.ones(n, bool) if found is None else np.asarray(found, bool)
    _check_shapes(originals, edited, probs_before, probs_after, targets, found, masks, twins)
    _check_more(n, probs_before.shape[1], labels, denoising_losses)
    rows = np.arange(n)
    wanted = probs_before[rows, targets] < 0.5 if task == "multi-label" else np.ones(n, bool)
    reached = _reached(probs_after, targets, wanted, task)
    gain = (probs_after[rows, targets] - probs_before[rows, targets]) * np.where(wanted, 1, -1)
    values = {"validity": reached & found, "found_share": found, "confidence_gain": gain}
    applies = {"num_scans": np.ones(n, bool), "num_found": found}
    if seconds_per_image is not None:
        values["seconds_per_image"] = np.full(n, seconds_per_image)
    if referee is not None and n:
        values["referee_validity"] = _reached(referee(edited), targets, wanted, task) & found
        applies["num_refereed"] = applies["num_scans"]
    difference = np.abs(edited.astype(np.float64) - originals) / 255
    values["l1"] = difference.mean((1, 2, 3))
    values["l2"] = np.sqrt((difference**2).mean((1, 2, 3)))
    values["changed_share"] = (difference.max(axis=3, initial=0) > CHANGE_THRESHOLD).mean((1, 2))
    values["identity"] = _own_is_nearest(edited, originals)
    if predict is not None:
        area = cout(originals[found], edited[found], targets[found], predict, task=task)
        values["cout"] = _spread(area, found)
    if denoising_losses is not None:
        values["denoising_loss_originals"], values["denoising_loss"] = denoising_losses
    if masks is not None:
        healed = ~wanted if task == "multi-label" else targets == _HEALTHY
        graded = masks.any((1, 2)) & healed & found & (values["l1"] > 0)
        truth = None if twins is None else twins[graded]
        for name, part in lesion_grades(originals[graded], edited[graded], masks[graded], truth).items():
            values[name] = _spread(part, graded)
        applies["num_lesions"] = graded
    aims = np.asarray(targets, np.int64) if task == "multi-class" else 2 * np.asarray(targets, np.int64) + wanted
    kid_sides = None
    if features is not None and labels is not None and found.any():
        scans, shown = _shown(labels)
        kid_sides = KidSide(features(edited), aims, rows), KidSide(features(originals)[scans], shown, scans)
    return ScanGrades({k: np.asarray(v, np.float64) for k, v in values.items()}, applies, aims, kid_sides)


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
    labels: np.ndarray | None = None,
    referee: Predict | None = None,
    predict: Predict | None = None,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
    denoising_losses: tuple[np.ndarray, np.ndarray] | None = None,
    seconds_per_image: float | None = None,
    task: str = "multi-class",
) -> dict[str, float]:
    """Return the means of `grade_scans` by name (MEAN_OVER) and the counts beside them; arguments as there."""
    return grade_scans(
        originals, edited, probs_before, probs_after, targets, found=found, masks=masks, twins=twins, labels=labels,
        referee=referee, predict=predict, features=features, denoising_losses=denoising_losses,
        seconds_per_image=seconds_per_image, task=task,
    ).means()  # fmt: skip


def merge_grades(grades: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the grades of all scans together, as if they had been graded in one place.

    `identity` and `kid` alone are not quite that: each hospital compares with its own scans only. `kid_error` is that
    of the merged `kid`, with the hospitals' estimates taken as independent.

    >>> merge_grades([{"l1": 0.1, "num_found": 3.0}, {"l1": 0.5, "num_found": 1.0}, {"num_found": 0.0}])
    {'l1': 0.2, 'num_found': 4.0}
    """
    parts = list(grades)
    merged: dict[str, float] = {}
    for name, count in MEAN_OVER.items():
        known = [(part[name], part[count]) for part in parts if name in part and part.get(count, 0) > 0]
        if known:
            total = sum(c for _, c in known)
            if name == "kid_error":
                merged[name] = round(math.sqrt(sum((v * c) ** 2 for v, c in known)) / total, 12)
            else:
                merged[name] = round(sum(v * c for v, c in known) / total, 12)
    for count in dict.fromkeys(MEAN_OVER.values()):
        if any(count in part for part in parts):
            merged[count] = sum(part.get(count, 0.0) for part in parts)
    return merged


def same_decisions(before: np.ndarray, after: np.ndarray, task: str) -> np.ndarray:
    """Return where two sets of probabilities, [N,outputs], mean the same decision: bool [N]."""
    if task == "multi-label":
        return ((before > 0.5) == (after > 0.5)).all(axis=1)
    return before.argmax(axis=1) == after.argmax(axis=1)


def _reached(probs: np.ndarray, targets: np.ndarray, wanted: np.ndarray, task: str) -> np.ndarray:
    if task == "multi-label":
        return (probs[np.arange(len(probs)), targets] > 0.5) == wanted
    return probs.argmax(axis=1) == targets


def _spread(part: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return an array as long as `where` that holds `part` where it is true."""
    whole = np.zeros(len(where))
    whole[where] = part
    return whole


def _shown(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every known label as (index of its scan, what the scan shows in the code of ScanGrades.aims)."""
    if labels.ndim == 1:
        known = np.flatnonzero(labels >= 0)
        return known, labels[known]
    scans, label = np.nonzero(labels >= 0)
    return scans, 2 * label + labels[scans, label]


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


def _check_more(
    n: int, num_outputs: int, labels: np.ndarray | None, losses: tuple[np.ndarray, np.ndarray] | None
) -> None:
    if labels is not None and labels.shape not in ((n,), (n, num_outputs)):
        raise ValueError(f"labels must have shape {(n,)} or {(n, num_outputs)}, not {labels.shape}.")
    if losses is not None and [part.shape for part in losses] != [(n,), (n,)]:
        raise ValueError(f"denoising_losses must be two arrays of shape {(n,)}, not {[part.shape for part in losses]}.")
