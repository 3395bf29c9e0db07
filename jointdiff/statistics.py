"""Classification metrics from mergeable statistics: hospitals count, the server adds, metrics are finished once.

Shapes: N images, K outputs (classes, or labels of a multi-label task). "binary" means multi-class with K = 2.

Every statistic is an int64 count (real-valued sums are in fixed point), so adding is exactly associative and
commutative: the pooled metrics do not depend on how the images were dealt to hospitals, nor on the order of replies.

The AUC comes from sparse histograms of the scores of positives and negatives (score_histogram.py). With the default
number of bins every float32 probability keeps a bin of its own, so the AUC is exact up to rounding, at the price that
the histogram tells as much as the list of scores and labels of the test images. With 4,096 bins it tells less, and the
AUC of a few hundred unsaturated scores is still within 0.001. A site that withholds small counts (small_counts.py)
takes COARSE_BINS, merges neighbouring bins, and leaves out what it will not tell; the AUC then has an error bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jointdiff import metrics
from jointdiff.metrics import FIXED_POINT
from jointdiff.score_histogram import NUM_BINS, Cells, check_num_bins, score_bin

TASKS = ("multi-class", "multi-label")
NUM_CALIBRATION_BINS = 15
COARSE_BINS = 64  # of the score histograms where a site withholds small counts
NAMES = ("header", "confusion", "histogram_keys", "histogram_counts", "log_loss", "calibration")
OPTIONAL_NAMES = ("histogram_widths", "confusion_slack")  # of statistics whose small counts are withheld
_FORMAT = 1
_MIN_PROB = float(np.finfo(np.float32).eps)  # log-loss clips here, as scikit-learn does for float32


@dataclass(frozen=True)
class ClassificationStatistics:
    """Sums over images from which every metric follows. Make one with `from_predictions`."""

    task: str  # multi-class | multi-label
    num_outputs: int  # K
    num_bins: int  # bins of the score histograms; even, so that p = 0.5 is an edge
    num_images: int
    confusion: np.ndarray  # int64 [K, K] (row = truth, column = argmax), multi-label [K, 2, 2] at p > 0.5
    histogram_keys: np.ndarray  # int64 [M], sorted: (2 * output + is_positive) * num_bins + bin
    histogram_counts: np.ndarray  # int64 [M], all > 0
    log_loss: np.ndarray  # int64 [1], fixed point: sum over images (multi-label: and labels) of -log p(truth)
    calibration: np.ndarray  # int64 [15, 3]: decisions, sum of confidence (fixed point), number right; 0 = withheld
    histogram_widths: np.ndarray | None = None  # int64 [M]: bins in the cell, its key is the first; None = 1 each
    confusion_slack: np.ndarray | None = None  # int64, a row of `confusion` each: how far a cell can be off

    @classmethod
    def from_predictions(
        cls, probs: np.ndarray, labels: np.ndarray, *, task: str, num_bins: int = NUM_BINS
    ) -> ClassificationStatistics:
        """Count one batch or one hospital's test images.

        Args:
            probs: [N, K] probabilities; rows add up to one for multi-class. N = 0 gives the neutral element.
            labels: Integers [N] in 0..K-1 (multi-class) or [N, K] of 0 and 1 (multi-label). Rows with -1 are left out.
            task: multi-class or multi-label.
            num_bins: Bins of each score histogram, even.

        Raises:
            ValueError: Shapes, ranges or the task do not fit.

        >>> s = ClassificationStatistics.from_predictions([[.9, .1], [.2, .8], [.6, .4]], [0, 1, 1], task="multi-class")
        >>> s.finish()["accuracy"], s.finish()["auc"]
        (0.6666666666666666, 1.0)
        """
        check_num_bins(num_bins)
        probs, labels = _checked(probs, labels, task)
        n, k = probs.shape
        shape = (k, 2, 2) if task == "multi-label" else (k, k)
        truth = labels.astype(bool) if task == "multi-label" else labels[:, None] == np.arange(k)
        if task == "multi-label":
            right_prob, confidence, right = np.where(truth, probs, 1 - probs), probs, truth
            predicted = probs > 0.5
            cells = (np.arange(k) * 4 + truth * 2 + predicted).ravel()
        else:
            right_prob, confidence = probs[truth], probs.max(axis=1, initial=0.0)
            predicted = probs.argmax(axis=1)
            right = predicted == labels
            cells = labels * k + predicted
        keys = (2 * np.arange(k) + truth) * num_bins + score_bin(probs, num_bins)
        unique, counts = np.unique(keys, return_counts=True)
        return cls(
            task=task,
            num_outputs=k,
            num_bins=num_bins,
            num_images=n,
            confusion=np.bincount(cells, minlength=int(np.prod(shape))).astype(np.int64).reshape(shape),
            histogram_keys=unique.astype(np.int64),
            histogram_counts=counts.astype(np.int64),
            log_loss=_fixed(-np.log(np.clip(right_prob, _MIN_PROB, 1.0))).sum(keepdims=True).reshape(1),
            calibration=_calibration(confidence.ravel(), right.ravel()),
        )

    def merge(self, others: ClassificationStatistics | Iterable[ClassificationStatistics]) -> ClassificationStatistics:
        """Return the statistics of all images together; exact, in any order and grouping.

        Raises:
            ValueError: The statistics are of another task, number of outputs or number of bins.
        """
        parts = [self, *([others] if isinstance(others, ClassificationStatistics) else others)]
        kinds = {(p.task, p.num_outputs, p.num_bins) for p in parts}
        if len(kinds) > 1:
            raise ValueError(f"Statistics of different kinds cannot be merged (task, outputs, bins): {sorted(kinds)}")
        keys, widths, counts = _add_cells(
            np.concatenate([p.histogram_keys for p in parts]),
            np.concatenate([p.widths for p in parts]),
            np.concatenate([p.histogram_counts for p in parts]),
        )
        return ClassificationStatistics(
            task=self.task,
            num_outputs=self.num_outputs,
            num_bins=self.num_bins,
            num_images=sum(p.num_images for p in parts),
            confusion=sum(p.confusion for p in parts),  # type: ignore[arg-type]
            histogram_keys=keys,
            histogram_counts=counts,
            log_loss=sum(p.log_loss for p in parts),  # type: ignore[arg-type]
            calibration=sum(p.calibration for p in parts),  # type: ignore[arg-type]
            histogram_widths=widths,
            confusion_slack=sum(p.slack for p in parts)  # type: ignore[arg-type]
            if any(p.confusion_slack is not None for p in parts) else None,
        )  # fmt: skip

    def coarser(self, num_bins: int) -> ClassificationStatistics:
        """Return the same with fewer bins, each a union of these: what counting with them would have given.

        Args:
            num_bins: A divisor of the present number.
        """
        factor, rest = divmod(self.num_bins, num_bins)
        assert not rest, (self.num_bins, num_bins)
        rows, bins = self.histogram_keys // self.num_bins, self.histogram_keys % self.num_bins
        first, last = bins // factor, (bins + self.widths - 1) // factor
        keys, widths, counts = _add_cells(rows * num_bins + first, last - first + 1, self.histogram_counts)
        return replace(
            self, num_bins=num_bins, histogram_keys=keys, histogram_counts=counts, histogram_widths=widths
        )  # fmt: skip

    @property
    def widths(self) -> np.ndarray:
        """How many bins each cell of the histograms covers, int64 [M]."""
        return np.ones_like(self.histogram_keys) if self.histogram_widths is None else self.histogram_widths

    @property
    def slack(self) -> np.ndarray:
        """How far a cell of each row of `confusion` can be off, int64 [K], multi-label [K, 2]."""
        return np.zeros(self.confusion.shape[:-1], np.int64) if self.confusion_slack is None else self.confusion_slack

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return int64 arrays that travel; `from_arrays` reads them."""
        header = [_FORMAT, TASKS.index(self.task), self.num_outputs, self.num_bins, self.num_images]
        arrays = {"header": np.array(header, np.int64), **{name: getattr(self, name) for name in NAMES[1:]}}
        optional = {name: getattr(self, name) for name in OPTIONAL_NAMES}
        return arrays | {name: array for name, array in optional.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ClassificationStatistics:
        """Read what `to_arrays` wrote, trusting nothing: it came from another machine.

        Raises:
            ValueError: An array is missing, of another type or shape, negative, or contradicts another one.
        """
        names = (*NAMES, *(name for name in OPTIONAL_NAMES if name in arrays))
        if set(arrays) != set(names):
            raise ValueError(f"Statistics must hold exactly {', '.join(NAMES)}, not {', '.join(sorted(arrays))}.")
        for name in names:
            array = np.asarray(arrays[name])
            if array.dtype.kind not in "iu" or (array.size and array.min() < 0):
                raise ValueError(f"Statistics: '{name}' must hold whole numbers >= 0 (type {array.dtype}).")
        values = {name: np.asarray(arrays[name]).astype(np.int64) for name in names}
        header = values.pop("header")
        if header.shape != (5,) or header[0] != _FORMAT or header[1] >= len(TASKS) or not 1 <= header[2] <= 2**20:
            raise ValueError(f"Statistics: the header {header.tolist()[:8]} is not one of format {_FORMAT}.")
        task, k, num_bins, n = TASKS[header[1]], int(header[2]), int(header[3]), int(header[4])
        check_num_bins(num_bins)
        multi = task == "multi-label"
        num_cells = values["histogram_keys"].size
        shapes: dict[str, tuple[int, ...]] = {
            "confusion": (k, 2, 2) if multi else (k, k),
            "log_loss": (1,),
            "calibration": (NUM_CALIBRATION_BINS, 3),
            "histogram_keys": (num_cells,),
            "histogram_counts": (num_cells,),
            "histogram_widths": (num_cells,),
            "confusion_slack": (k, 2) if multi else (k,),
        }
        for name, array in values.items():
            if array.shape != shapes[name]:
                raise ValueError(f"Statistics: '{name}' must have shape {shapes[name]}, not {array.shape}.")
        found = cls(task=task, num_outputs=k, num_bins=num_bins, num_images=n, **values)
        keys, counts, decisions = values["histogram_keys"], values["histogram_counts"], values["calibration"]
        if (np.diff(keys) <= 0).any() or (num_cells and keys[-1] >= 2 * k * num_bins):
            raise ValueError("Statistics: the histogram's keys must rise and lie inside the outputs' range.")
        if (found.widths < 1).any() or (keys % num_bins + found.widths > num_bins).any():
            raise ValueError("Statistics: a cell of the histogram reaches beyond the bins of its output.")
        per_output = np.bincount(keys // (2 * num_bins), counts, minlength=k)
        # A label whose counts are withheld is empty in both, and nowhere else may they be but of all images.
        withheld = multi & (per_output == 0)
        per_confusion = values["confusion"].reshape(k, 4).sum(1) if multi else values["confusion"].sum(keepdims=True)
        num_decisions = decisions[:, 0].sum()
        if (
            (per_output != np.where(withheld, 0, n)).any()
            or (per_confusion != (np.where(withheld, 0, n) if multi else n)).any()
            or num_decisions not in (0, n * (k if multi else 1))
        ):
            raise ValueError(f"Statistics: the counts contradict each other, or the {n} images that the header claims.")
        if (decisions[:, 2] > decisions[:, 0]).any() or (decisions[:, 1] // FIXED_POINT > decisions[:, 0]).any():
            raise ValueError("Statistics: the calibration bins hold more than their number of decisions.")
        return found

    def finish(self, *, threshold: float = 0.5) -> dict[str, Any]:
        """Return the metrics by name, fit for JSON; see `jointdiff.metrics.finish`."""
        return metrics.finish(self, threshold=threshold)

    def histogram(self, output: int, positive: bool) -> Cells:
        """Return one output's negatives or positives: first and last bin of each cell, and its count, [M] each."""
        first = (2 * output + positive) * self.num_bins
        part = slice(*np.searchsorted(self.histogram_keys, [first, first + self.num_bins]))
        bins = self.histogram_keys[part] - first
        return bins, bins + self.widths[part] - 1, self.histogram_counts[part]


def _add_cells(
    keys: np.ndarray, widths: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return sorted cells with their counts added up, and their widths, None where all are one."""
    if (widths == 1).all():
        added, where = np.unique(keys, return_inverse=True)
        wide = None
    else:
        (added, wide), where = np.unique(np.stack([keys, widths]), axis=1, return_inverse=True)
    total = np.zeros(len(added), np.int64)
    np.add.at(total, where.ravel(), counts)
    return added, wide, total


def _checked(probs: np.ndarray, labels: np.ndarray, task: str) -> tuple[np.ndarray, np.ndarray]:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}.")
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    if probs.ndim != 2 or probs.shape[1] < 1:
        raise ValueError(f"Probabilities must have shape [N, K], not {probs.shape}.")
    wanted = probs.shape if task == "multi-label" else probs.shape[:1]
    if labels.shape != wanted or labels.dtype.kind not in "iu":
        raise ValueError(f"{task} labels must be integers of shape {wanted}, not {labels.dtype} of {labels.shape}.")
    labels = labels.astype(np.int64)
    known = (labels >= 0).all(axis=1) if task == "multi-label" else labels >= 0
    probs, labels = probs[known], labels[known]
    if not np.isfinite(probs).all() or probs.min(initial=0.0) < 0 or probs.max(initial=0.0) > 1 + 1e-3:
        raise ValueError("Probabilities must be finite and lie between 0 and 1: has the training diverged?")
    if task == "multi-class" and len(probs) and np.abs(probs.sum(axis=1) - 1).max() > 1e-2:
        raise ValueError("The probabilities of an image must add up to one over the classes.")
    highest = 1 if task == "multi-label" else probs.shape[1] - 1
    if labels.max(initial=0) > highest:
        raise ValueError(f"{task} labels must be at most {highest}, not {labels.max()}.")
    return np.minimum(probs, 1.0), labels


def _calibration(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    bins = np.clip(np.ceil(confidence * NUM_CALIBRATION_BINS) - 1, 0, NUM_CALIBRATION_BINS - 1).astype(np.int64)
    table = np.zeros((NUM_CALIBRATION_BINS, 3), np.int64)
    np.add.at(table, bins, np.stack([np.ones_like(bins), _fixed(confidence), right.astype(np.int64)], axis=1))
    return table


def _fixed(values: np.ndarray) -> np.ndarray:
    return np.rint(values * FIXED_POINT).astype(np.int64)
