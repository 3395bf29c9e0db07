"""What the keys of metrics and grades are called on a page, in which order, and how their values are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jointdiff.views.format import duration, is_number, number, percent, words

# key: (label, kind of value)
GRADES: dict[str, tuple[str, str]] = {
    "num_scans": ("Scans explained", "count"),
    "validity": ("Model's decision changed", "share"),
    "referee_validity": ("Independent referee agrees with the change", "share"),
    "referee_accuracy": ("The referee's own accuracy", "share"),
    "lesion_share": ("Share of the edit on the lesion (ill to healthy)", "share"),
    "pointing": ("The strongest change lies on the lesion", "share"),
    "lesion_area_share": ("The same by chance: the lesion's share of the area", "share"),
    "twin_distance_ratio": ("Distance left to the true healthy twin (0 = healed)", "number"),
    "changed_share": ("Pixels changed", "share"),
    "identity": ("Nearest original is its own", "share"),
    "cout": ("Deletion and insertion curve (COUT, 1 = best)", "number"),
    "kid": ("Distance of the edits to scans of the target class (KID)", "number"),
    "kid_error": ("Its standard error", "number"),
    "denoising_loss": ("Denoising loss of the edits", "number"),
    "denoising_loss_originals": ("Denoising loss of the scans", "number"),
    "decoded_agreement": ("Same decision on the decoded scan: what the autoencoder keeps", "share"),
    "decoded_l1": ("Mean loss per pixel by the autoencoder, no part of the edits", "number"),
    "scan_l1": ("Mean difference of edit and scan per pixel, that loss included", "number"),
    "confidence_gain": ("Rise of the target's probability", "number"),
    "l1": ("Mean change per pixel (1 = full range)", "number"),
    "l2": ("Root mean square change per pixel", "number"),
    "seconds_per_image": ("Time per scan", "seconds"),
}

PERSONAL = (  # of numbers from a run with personal=head
    "Every hospital with labels decided by a classifier head of its own, which stays there (personal=head); the others "
    "by the head that is solved for all. The model that is exported carries that one: these numbers are not its own."
)

METRICS: dict[str, str] = {
    "auc": "AUC",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "calibration_error": "Calibration error",
    "log_loss": "Log-loss",
    "psnr": "PSNR (dB)",
    "psnr_gain": "Gain over grey pictures (dB)",
    "reconstruction_l1": "Mean absolute error (2 = black to white)",
    "latent_std": "Smallest spread of a latent channel",
}

_SAID = ("found_share",)  # validity says it, and more strictly
_KINDS: dict[str, Callable[[Any], str]] = {"share": percent, "seconds": duration, "number": number,
           "count": lambda value: number(round(value)) if is_number(value) else number(value)}  # fmt: skip


def grades(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return grades as label and text, in `grade_order`."""
    return [(grade_label(key), grade_text(key, metrics[key])) for key in grade_order(metrics)]


def grade_order(keys: Iterable[str]) -> list[str]:
    """Return the keys to show: the known ones in the order above, then others by name.

    Left out are the counts behind single means, and the grades of samples, which have a table of their own.
    """
    given = set(keys)
    others = sorted(key for key in given - set(GRADES) if not key.startswith(("num_", "samples.")) and key not in _SAID)
    return [key for key in GRADES if key in given] + others


def grade_label(key: str) -> str:
    """Return what a grade is called."""
    return GRADES[key][0] if key in GRADES else words(key)


def grade_text(key: str, value: Any) -> str:
    """Return a grade's value as text."""
    return _KINDS[GRADES[key][1] if key in GRADES else "number"](value)


def class_name(class_names: Sequence[str], index: int) -> str:
    """Return the name of a class, or its number where the list is too short."""
    return class_names[index] if 0 <= index < len(class_names) else f"class {index}"
