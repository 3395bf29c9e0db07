"""What a site with a `min-cell-count` of m > 0 withholds, so that no count from 1 to m-1 leaves it or follows.

One rule for each kind of number:

- *Evaluation and held-out statistics.* Every class needs m images, every label m with it and m without it: else all
  statistics of that part (a label of a multi-label task: of that label) are withheld. Scores are counted in 64 fixed
  bins; neighbouring bins are merged until each cell holds m, the rest at the end joins the last cell. A cell of the
  confusion matrix from 1 to m-1 is replaced by m // 2, which says no more than that it is from 1 to m-1; the largest
  cell of its row takes up the difference, so that no total gives it away, and `confusion_slack` says how far the row
  can be off. The calibration table is withheld: its totals would give the confusion's replaced cells away.
- *Class tables.* Where a class has from 1 to m-1 images, the counts of all its classes are withheld, since the total
  is known. A total from 1 to m-1 is withheld, and with it what would complete it to a known one.
- *Grades* of explanations: a mean over fewer than m scans is withheld, and so is its count.

Zero is no small count: it tells of nobody. The bins in which merged cells begin and end do tell in which of the 64 bins
some image's score lies. Weights and the head's sums are contributions to the model, not statistics, and are not touched
here: differential privacy and secure aggregation protect those. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jointdiff.grading import MEAN_OVER
from jointdiff.statistics import COARSE_BINS, ClassificationStatistics

_COMPLEMENTS = {"num_labelled": "num_unlabelled", "num_unlabelled": "num_labelled"}  # they add up to num_train


def is_small(count: float, minimum: int) -> bool:
    """Tell whether a count is from 1 to minimum - 1.

    >>> [is_small(count, 10) for count in (0, 1, 9, 10)]
    [False, True, True, False]
    """
    return 0 < count < minimum


def shown(count: int, minimum: int) -> int:
    """Return a count, or 0 in place of a small one."""
    return 0 if is_small(count, minimum) else count


def withhold(stats: ClassificationStatistics, minimum: int) -> tuple[ClassificationStatistics | None, list[str]]:
    """Return what may leave of one part's statistics, and what is withheld of it.

    Args:
        stats: Counted with COARSE_BINS bins.
        minimum: m, at least 3.

    Returns:
        The statistics, or None where all are withheld; names of what is: '' (all), `calibration`, `confusion` (cells of
        it are replaced), `output-<k>`.
    """
    assert stats.num_bins == COARSE_BINS and minimum >= 3, (stats.num_bins, minimum)
    if not stats.num_images:
        return stats, []
    multi = stats.task == "multi-label"
    groups = stats.confusion.sum(axis=-1)  # images of each class; of each label without and with it
    hidden = (groups < minimum).any(axis=-1) if multi else np.full(stats.num_outputs, (groups < minimum).any())
    confusion = np.where(hidden[:, None, None] if multi else hidden[:, None], 0, stats.confusion)
    rows, slack = _replace_small(confusion.reshape(-1, confusion.shape[-1]), minimum)
    if hidden.all() or rows is None:
        return None, [""]
    keys, counts, widths = _merge_small(stats, np.flatnonzero(~hidden), minimum)
    found = replace(
        stats,
        confusion=rows.reshape(confusion.shape),
        histogram_keys=keys,
        histogram_counts=counts,
        histogram_widths=widths,
        calibration=np.zeros_like(stats.calibration),
        confusion_slack=slack.reshape(groups.shape) if slack.any() else None,
    )
    names = [f"output-{k}" for k in np.flatnonzero(hidden)] + ["calibration"] + (["confusion"] if slack.any() else [])
    return found, names


def _replace_small(rows: np.ndarray, minimum: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Return rows [R,C] without small counts and with the same sums, and how far a cell of each row can be off.

    None in place of the rows where no cell of one of them is large enough to take up the difference.

    >>> rows, slack = _replace_small(np.array([[97, 3], [20, 40], [50, 0]]), 10)
    >>> rows.tolist(), slack.tolist()
    ([[95, 5], [20, 40], [50, 0]], [4, 0, 0])
    """
    small = (rows > 0) & (rows < minimum)
    middle = minimum // 2
    replaced = np.where(small, middle, rows)
    largest = rows.argmax(axis=1)
    at = np.arange(len(rows))
    replaced[at, largest] += rows.sum(axis=1) - replaced.sum(axis=1)
    slack = small.sum(axis=1) * max(middle - 1, minimum - 1 - middle)
    too_small = small.any(axis=1) & (replaced[at, largest] < minimum)
    return (None if too_small.any() else replaced), slack


def _merge_small(
    stats: ClassificationStatistics, outputs: np.ndarray, minimum: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keys, counts and widths of the histograms of some outputs, every cell with `minimum` scores or more."""
    keys: list[int] = []
    counts: list[int] = []
    widths: list[int] = []
    for output in outputs:
        for positive in (False, True):
            start = (2 * int(output) + positive) * stats.num_bins
            first_bins, last_bins, in_cell = stats.histogram(int(output), positive)
            if positive:
                cells = merged_cells(first_bins, last_bins, in_cell, minimum)
            else:  # from the upper end: what is left over, and makes a cell wide, then lies far from the positives
                turned = merged_cells(-last_bins[::-1], -first_bins[::-1], in_cell[::-1], minimum)
                cells = [(-last, -first, count) for first, last, count in turned[::-1]]
            for first, last, count in cells:
                keys.append(start + first)
                counts.append(count)
                widths.append(last - first + 1)
    return np.array(keys, np.int64), np.array(counts, np.int64), np.array(widths, np.int64)


def merged_cells(first: np.ndarray, last: np.ndarray, counts: np.ndarray, minimum: int) -> list[tuple[int, int, int]]:
    """Return cells as (first bin, last bin, count), neighbours merged until each holds `minimum`.

    >>> merged_cells(np.array([2, 3, 9, 20]), np.array([2, 3, 9, 20]), np.array([4, 7, 12, 1]), 10)
    [(2, 3, 11), (9, 20, 13)]
    """
    found: list[tuple[int, int, int]] = []
    begun: tuple[int, int, int] | None = None
    for low, high, count in zip(first.tolist(), last.tolist(), counts.tolist(), strict=True):
        begun = (low, high, count) if begun is None else (begun[0], high, begun[2] + count)
        if begun[2] >= minimum:
            found.append(begun)
            begun = None
    if begun is not None and found:
        found[-1] = (found[-1][0], begun[1], found[-1][2] + begun[2])
    return found


def holds(stats: ClassificationStatistics, minimum: int) -> bool:
    """Tell whether statistics that are about to leave tell no small count: the check of what `withhold` made."""
    cells = stats.confusion.reshape(-1, stats.confusion.shape[-1])
    allowed = (cells == 0) | (cells >= minimum) | ((cells == minimum // 2) & (stats.slack.reshape(-1, 1) > 0))
    groups = cells.sum(axis=1)
    return bool(
        stats.num_bins == COARSE_BINS
        and allowed.all()
        and not ((groups > 0) & (groups < minimum)).any()
        and (stats.histogram_counts >= minimum).all()
        and not stats.calibration.any()
        and not is_small(stats.num_images, minimum)
    )


def table_without_small(table: Mapping[str, Any], minimum: int, *, multi_label: bool) -> dict[str, Any]:
    """Return a class table (data.hospital.class_table) with None in place of what is withheld.

    >>> table_without_small({"test": [30, 4], "num_test": 34, "num_labelled": 3, "num_unlabelled": 47}, 10,
    ...                     multi_label=False)
    {'test': None, 'num_test': 34, 'num_labelled': None, 'num_unlabelled': None}
    """
    totals = {"labelled": table.get("num_labelled", 0), "test": table.get("num_test", 0)}
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name in totals:
            others = [totals[name] - count for count in value] if multi_label else []
            found[name] = None if any(is_small(count, minimum) for count in (*value, *others)) else value
        elif isinstance(value, int) and not isinstance(value, bool):
            hidden = is_small(value, minimum) or is_small(table.get(_COMPLEMENTS.get(name, ""), 0), minimum)
            found[name] = None if hidden else value
        else:
            found[name] = value
    return found


def grades_without_small(
    grades: Mapping[str, float], minimum: int, class_counts: Sequence[int], prefix: str
) -> dict[str, float]:
    """Return grades of explanations and samples without those that rest on fewer than `minimum` scans.

    Args:
        grades: By name; means beside their counts (grading.MEAN_OVER), and grades of samples.
        class_counts: How many of the site's images show each class: samples of a class are graded against halves of
            these, and are left out where a half is small.
        prefix: Of the grades of samples.

    >>> grades_without_small({"l1": 0.1, "num_found": 4.0, "validity": 0.5, "num_scans": 12.0}, 10, [], "samples.")
    {'validity': 0.5, 'num_scans': 12.0}
    """
    few = {count for count in MEAN_OVER.values() if grades.get(count, 0) < minimum}
    scarce = tuple(f"{prefix}kid.{k}." for k, count in enumerate(class_counts) if count // 2 < minimum)
    return {
        name: value
        for name, value in grades.items()
        if MEAN_OVER.get(name) not in few and name not in few and not name.startswith(scarce or ("\0",))
    }
