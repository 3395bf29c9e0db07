"""Tables of graded explanations, in Markdown: a row per method and control, over several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BASELINE = "authors"  # the method that times are compared with
EVERYWHERE = "all"  # the direction that is none
COLUMNS = {  # grade: heading and digits
    "validity": ("validity", 3),
    "referee_validity": ("referee validity", 3),
    "identity": ("identity", 3),
    "lesion_share": ("lesion share", 3),
    "lesion_area_share": ("by chance", 3),
    "pointing": ("pointing game", 3),
    "twin_distance_ratio": ("twin distance", 2),
    "l1": ("L1", 4),
    "changed_share": ("changed share", 3),
    "cout": ("COUT", 3),
    "kid": ("KID", 4),
    "seconds_per_image": ("s/image", 3),
    "speedup": (f"times faster than {BASELINE}", 1),
}


@dataclass(frozen=True)
class Row:
    """One method's or control's grades on one run, towards one direction."""

    run: str
    method: str
    control: str  # '' = the method itself
    direction: str  # EVERYWHERE, or what the edits aim at
    grades: dict[str, float]  # grading.MEAN_OVER, its counts, and `speedup` over BASELINE where that is known

    @property
    def label(self) -> str:
        """What the table calls it."""
        return f"{self.method}: {self.control}" if self.control else self.method


def directions(aims: np.ndarray, class_names: Sequence[str], task: str) -> dict[str, np.ndarray]:
    """Return which edits go in each direction, bool [N] by name: all, to every class; multi-label: to and from each.

    Args:
        aims: As grading.ScanGrades holds them.

    >>> [name for name in directions(np.array([0, 1]), ["healthy", "ill"], "multi-class")]
    ['all', 'to healthy', 'to ill']
    """
    if task == "multi-label":
        texts = {
            2 * k + shown: f"{('without', 'with')[shown]} {c}" for k, c in enumerate(class_names) for shown in (1, 0)
        }
    else:
        texts = {k: f"to {c}" for k, c in enumerate(class_names)}
    return {EVERYWHERE: np.ones(len(aims), bool)} | {text: aims == aim for aim, text in texts.items()}


def table(rows: Sequence[Row], direction: str = EVERYWHERE) -> str:
    """Return a Markdown table of one direction: methods and controls by grades, over the runs.

    A cell is the mean and, where several runs have the grade, (smallest to largest). Columns that nobody has are left
    out; a dash stands where a grade says nothing.
    """
    rows = [row for row in rows if row.direction == direction]
    columns = [name for name in COLUMNS if any(name in row.grades for row in rows)]
    lines = [
        f"| method | scans | {' | '.join(COLUMNS[name][0] for name in columns)} |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for label in dict.fromkeys(row.label for row in rows):
        own = [row.grades for row in rows if row.label == label]
        scans = int(sum(grades["num_scans"] for grades in own))
        cells = [_cell([g[name] for g in own if name in g], COLUMNS[name][1]) for name in columns]
        lines.append(f"| {label} | {scans} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int) -> str:
    """Return the mean, and the spread where there is one.

    >>> _cell([0.5, 0.25], 2), _cell([0.5], 1), _cell([], 3)
    ('0.38 (0.25 to 0.50)', '0.5', '-')
    """
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def notes(facts: Sequence[dict[str, Any]], *, split: str, feature_net: str) -> str:
    """Return what must be read beside the table.

    Args:
        facts: Of every run: num_scans, referee_accuracy (None = not known), kid_scale ({name: [value, error]}).
        split: That the scans are of.
        feature_net: The name of the net that KID looks through.
    """
    accuracies = [fact["referee_accuracy"] for fact in facts if fact["referee_accuracy"] is not None]
    lines = [f"{len(facts)} run(s), {split} split, {sum(fact['num_scans'] for fact in facts)} scans in all."]
    if accuracies:
        lines.append(f"The referee's own accuracy on these scans: {_cell(accuracies, 3)}.")
    scale = {
        name: _cell([fact["kid_scale"][name][0] for fact in facts if name in fact["kid_scale"]], 4)
        for name in ("real", "unedited", "noise")
    }
    lines.append(
        f"KID of {feature_net}, for scale: real against real {scale['real']}, scans unedited {scale['unedited']}, "
        f"noise {scale['noise']}."
    )
    return "\n".join(lines)
