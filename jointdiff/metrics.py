"""The metrics of a classifier, finished once from merged statistics. Pure numpy.

Definitions follow MedMNIST where it has one. K outputs: classes, or labels of a multi-label task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff import score_histogram

if TYPE_CHECKING:
    from jointdiff.statistics import ClassificationStatistics

FIXED_POINT = 2**32  # one, in the statistics' fixed-point sums: addition is exact, resolution 2e-10


def finish(stats: ClassificationStatistics, *, threshold: float = 0.5) -> dict[str, Any]:
    """Return the metrics of all images counted, fit for JSON: None where a metric is not defined.

    Args:
        threshold: Operating point of a binary or multi-label task: positive is p > threshold.

    Returns:
        auc: As MedMNIST: binary the positive class; else the mean over classes, one against the rest, without the
            `auc_num_skipped` classes that have no positives or no negatives. auc_per_class: list.
        accuracy: At argmax; multi-label: mean over labels at p > 0.5.
        balanced_accuracy: Mean recall over the classes present at argmax; multi-label: over labels at p > 0.5.
        log_loss: Nats per image (multi-label: per image and label), probabilities clipped at 1.2e-7.
        calibration_error: Expected calibration error, 15 equal bins of the top class's probability (multi-label:
            of each label's probability).
        sensitivity, specificity: At `operating_point`; more than two classes: one against the rest at argmax, mean.
        confusion_matrix: Rows truth, columns prediction; multi-label: one 2 x 2 matrix per label.
        num_images: N.
        auc_error, and the same for accuracy, balanced_accuracy, sensitivity, specificity: Only where sites withhold
            small counts: how far binning and replaced cells can have moved the number from what all images would give.
    """
    multi, k = stats.task == "multi-label", stats.num_outputs
    confusion = stats.confusion.astype(np.float64)
    areas = [_auc(stats, output) for output in range(k)]
    if k == 2 and not multi:
        areas = areas[1:]
    aucs = [area for area, _ in areas]
    table = _one_vs_rest(confusion, multi)  # [K, 2, 2]
    recalls = _ratio(table[:, 1, 1], table[:, 1].sum(1))
    negative_recalls = _ratio(table[:, 0, 0], table[:, 0].sum(1))
    merged_bins = stats.histogram_widths is not None and threshold == 0.5  # the confusion knows what they do not
    if k == 2 and not multi:
        at_half = (float(recalls[1]), float(recalls[0]))
        sensitivity, specificity = at_half if merged_bins else _at_threshold(stats, 1, threshold)
        operating_point = f"p > {threshold:g}"
    elif multi and merged_bins:
        sensitivity, specificity = _mean(recalls), _mean(negative_recalls)
        operating_point = f"p > {threshold:g}, mean over labels"
    elif multi:
        points = np.array([_at_threshold(stats, output, threshold) for output in range(k)], np.float64)
        sensitivity, specificity = _mean(points[:, 0]), _mean(points[:, 1])
        operating_point = f"p > {threshold:g}, mean over labels"
    else:
        sensitivity, specificity = _mean(recalls), _mean(negative_recalls)
        operating_point = "argmax, one against the rest, mean over classes"
    decisions, conf, right = stats.calibration[:, 0], stats.calibration[:, 1] / FIXED_POINT, stats.calibration[:, 2]
    total, num_decisions = confusion.sum(), stats.num_images * (k if multi else 1)
    hits = table[:, 0, 0].sum() + table[:, 1, 1].sum() if multi else np.trace(confusion)
    return {
        "auc": _mean(np.array([a for a in aucs if a is not None])),
        "auc_per_class": aucs,
        "auc_num_skipped": sum(a is None for a in aucs),
        "accuracy": float(hits / total) if total else None,
        "balanced_accuracy": _mean((recalls + negative_recalls) / 2 if multi else recalls),
        "log_loss": float(stats.log_loss[0] / FIXED_POINT / num_decisions) if num_decisions else None,
        "calibration_error": float(np.abs(conf - right).sum() / decisions.sum()) if decisions.sum() else None,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "operating_point": operating_point,
        "confusion_matrix": stats.confusion.tolist(),
        "num_images": stats.num_images,
        **_errors(stats, [error for _, error in areas]),
    }


def _errors(stats: ClassificationStatistics, auc_errors: list[float | None]) -> dict[str, float | None]:
    """Return how far the metrics can be off, {} where nothing was made coarse."""
    found: dict[str, float | None] = {}
    if stats.num_bins < score_histogram.NUM_BINS:
        found["auc_error"] = _mean(np.array([e for e in auc_errors if e is not None]))
    if stats.confusion_slack is not None:
        multi, slack, rows = stats.task == "multi-label", stats.slack, stats.confusion.sum(axis=-1)
        if multi:
            recalls, negatives = _ratio(slack[:, 1], rows[:, 1]), _ratio(slack[:, 0], rows[:, 0])
        else:
            recalls, negatives = _ratio(slack, rows), _ratio(slack.sum() - slack, rows.sum() - rows)
        binary = stats.num_outputs == 2 and not multi
        found["accuracy_error"] = float(slack.sum() / rows.sum()) if rows.sum() else None
        found["balanced_accuracy_error"] = _mean((recalls + negatives) / 2 if multi else recalls)
        found["sensitivity_error"] = float(recalls[1]) if binary else _mean(recalls)
        found["specificity_error"] = float(recalls[0]) if binary else _mean(negatives)
    return found


def _auc(stats: ClassificationStatistics, output: int) -> tuple[float | None, float | None]:
    return score_histogram.auc(stats.histogram(output, False), stats.histogram(output, True))


def _at_threshold(stats: ClassificationStatistics, output: int, threshold: float) -> tuple[float | None, float | None]:
    """Return sensitivity and specificity of one output, positive being p > threshold."""
    sensitivity = score_histogram.share_above(stats.histogram(output, True), threshold, stats.num_bins)
    false_alarms = score_histogram.share_above(stats.histogram(output, False), threshold, stats.num_bins)
    return sensitivity, None if false_alarms is None else 1 - false_alarms


def _one_vs_rest(confusion: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return [K, 2, 2]: for every output the counts of truth (rows) and prediction (columns), one against the rest."""
    if multi_label:
        return confusion
    hits = np.diag(confusion)
    misses, false_alarms = confusion.sum(1) - hits, confusion.sum(0) - hits
    rest = confusion.sum() - hits - misses - false_alarms
    return np.stack([np.stack([rest, false_alarms], -1), np.stack([misses, hits], -1)], 1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None
