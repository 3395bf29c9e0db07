"""What the keys of metrics and grades are called on a page, in which order, and how their values are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jointdiff.views.format import duration, is_number, number, percent, words

# key: (label, kind of value)
GRADES: dict[str, tuple[str, str]] = {
    "num_explained": ("Scans explained", "number"),
    "num_images": ("Scans explained", "number"),
    "flip_rate": ("Decision changed", "share"),
    "referee_flip_rate": ("Independent referee agrees", "share"),
    "edit_on_lesion": ("Edit on the lesion (ill to healthy)", "share"),
    "lesion_area": ("By chance (share of the area)", "share"),
    "pixels_changed": ("Pixels changed", "share"),
    "identity": ("Nearest scan is its own original", "share"),
    "seconds_per_image": ("Time per scan", "seconds"),
}

METRICS: dict[str, str] = {
    "auc": "AUC",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "calibration_error": "Calibration error",
    "log_loss": "Log-loss",
}

_KINDS: dict[str, Callable[[Any], str]] = {"share": percent, "seconds": duration, "number": number}


def grades(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return grades as label and text: the known keys first, in the order above, then other numbers by name."""
    known = [key for key in GRADES if key in metrics]
    others = sorted(key for key in metrics if key not in GRADES and is_number(metrics[key]))
    return [(grade_label(key), grade_text(key, metrics[key])) for key in (*known, *others)]


def grade_label(key: str) -> str:
    """Return what a grade is called."""
    return GRADES[key][0] if key in GRADES else words(key)


def grade_text(key: str, value: Any) -> str:
    """Return a grade's value as text."""
    return _KINDS[GRADES[key][1] if key in GRADES else "number"](value)


def class_name(class_names: list[str] | tuple[str, ...], index: int) -> str:
    """Return the name of a class, or its number where the list is too short."""
    return class_names[index] if 0 <= index < len(class_names) else f"class {index}"
