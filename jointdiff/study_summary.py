"""What a study's runs add up to: means over draws, differences in pairs, shares of a gap. Pure: rows in, numbers out.

A draw is a split-seed with a seed. Where a study has several split-seeds, these are the n of every interval, and
training seeds on one split are averaged first: two trainings on the same labels are no two independent draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jointdiff.paired import Interval, gap_recovered, paired_difference, student_mean

FINISHED, FAILED, WAITING = "finished", "failed", "waiting"
FEDERATED, CENTRALISED, LOCAL_ONLY = "federated", "centralised", "local-only"
METRICS = ("auc", "balanced_accuracy", "accuracy", "log_loss")
Draw = tuple[int, int]  # split-seed, seed


@dataclass(frozen=True)
class StudyRow:
    """One run of a study: what identifies it, and what came of it. The columns of results.csv."""

    study: str
    setting: str
    method: str
    place: str  # federated | centralised | local-only
    hospital: int  # local-only: which one trains, from 1; else 0
    num_labels: int  # 0 = all
    split_seed: int
    seed: int
    run: str  # its name: HOME/runs/<run>
    steps: int  # optimiser steps per hospital, or in the one place
    status: str = WAITING  # finished | failed | waiting
    reason: str = ""  # why it failed, or has not run
    auc: float | None = None
    balanced_accuracy: float | None = None
    accuracy: float | None = None
    log_loss: float | None = None
    seconds: float | None = None
    code: str = ""  # hash of the code that ran

    @property
    def draw(self) -> Draw:
        """Which repetition this is."""
        return self.split_seed, self.seed


@dataclass(frozen=True)
class Design:
    """What a study compares with what."""

    methods: tuple[str, ...]
    settings: tuple[str, ...]
    num_labels: tuple[int, ...]
    reference: str
    lower: str = ""  # method that is the labelled-only bound; '' = none
    upper: str = ""  # method that with all labels is the upper bound; '' = none
    seed: int = 0  # of the bootstrap


@dataclass(frozen=True)
class StudyFacts:
    """What must be read beside a study's numbers."""

    name: str
    dataset: str
    real: bool  # False: phantoms
    split: str  # whose images are evaluated: test | val
    num_hospitals: str  # "3", or "3 to 50"
    centralised_steps: str  # total | one-hospital
    runner: str  # local | flwr
    notes: tuple[str, ...]  # what was not run, and why
    content: Mapping[str, Any]  # of study.yaml
    eval_scanners: Mapping[str, int] = field(default_factory=dict)  # of each setting; 0 = images as they are


@dataclass(frozen=True)
class Line:
    """One line of a table: a method in one place, over the draws of a setting and a number of labels."""

    method: str
    place: str
    which: str = ""  # local-only: mean | best of the hospitals
    bound: str = ""  # lower | upper
    mean: Interval | None = None  # of the metric; None where nothing has finished
    sd: float | None = None
    difference: Interval | None = None  # the reference minus this one, in pairs
    gap: Interval | None = None  # share of the way from the lower to the upper bound
    steps: tuple[int, ...] = ()
    seconds: float | None = None  # median over the runs; local-only: of one hospital
    planned: int = 0  # runs
    finished: int = 0
    failed: int = 0

    @property
    def label(self) -> str:
        """What tables call it."""
        place = f", {self.place}" if self.place != FEDERATED else ""
        which = f", {self.which}" if self.which else ""
        bound = {"lower": " (labelled only)", "upper": ", all labels"}.get(self.bound, "")
        return f"{self.method}{bound}{place}{which}"


@dataclass(frozen=True)
class Cell:
    """All lines of one setting and number of labels."""

    setting: str
    num_labels: int
    lines: tuple[Line, ...]


def cells(rows: Sequence[StudyRow], design: Design, metric: str = "auc") -> list[Cell]:
    """Return every setting and number of labels of a study, in its order, summed up by one metric.

    Args:
        rows: All planned runs, finished or not.
        metric: One of METRICS.
    """
    return [
        Cell(setting, count, _lines(rows, design, setting, count, metric))
        for setting in design.settings
        for count in design.num_labels
    ]


def against_first_setting(rows: Sequence[StudyRow], design: Design, metric: str = "auc") -> list[Cell]:
    """Return, for every further setting, what each federated method loses (minus) or gains in it against the first one.

    `difference` of a line is its setting minus the first setting, draw by draw.
    """
    found = []
    for setting in design.settings[1:]:
        for count in design.num_labels:
            lines = []
            for method in design.methods:
                here = _values(_of(rows, setting, count, method), metric)
                there = _values(_of(rows, design.settings[0], count, method), metric)
                if both := _common(here, there):
                    lines.append(Line(method, FEDERATED, difference=paired_difference(both[0], both[1])))
            if lines:
                found.append(Cell(setting, count, tuple(lines)))
    return found


def _lines(rows: Sequence[StudyRow], design: Design, setting: str, count: int, metric: str) -> tuple[Line, ...]:
    groups: list[tuple[Line, list[StudyRow], Callable[[Sequence[float]], float]]] = []
    for method in design.methods:
        bound = "lower" if method == design.lower else ""
        for line, pick in (
            (Line(method, FEDERATED, bound=bound), np.mean),
            (Line(method, CENTRALISED), np.mean),
            (Line(method, LOCAL_ONLY, "mean"), np.mean),
            (Line(method, LOCAL_ONLY, "best"), np.max),
        ):
            if found := _of(rows, setting, count, method, line.place):
                groups.append((line, found, pick))
    if design.upper and (found := _of(rows, setting, 0, design.upper)):
        groups.append((Line(design.upper, FEDERATED, bound="upper"), found, np.mean))
    values = [_values(found, metric, pick) for _, found, pick in groups]
    where = {(line.method, line.place, line.bound == "upper"): v for (line, *_), v in zip(groups, values, strict=True)}
    reference = where.get((design.reference, FEDERATED, False), {})
    lower, upper = where.get((design.lower, FEDERATED, False), {}), where.get((design.upper, FEDERATED, True), {})
    lines = []
    for (line, found, _), own in zip(groups, values, strict=True):
        is_reference = (line.method, line.place, line.bound) in (
            (design.reference, FEDERATED, b) for b in ("", "lower")
        )
        both = None if is_reference else _common(reference, own)
        three = None if line.bound else _common(own, lower, upper)
        mine = _units(own) if own else []
        done = [row for row in found if row.status == FINISHED]
        lines.append(
            replace(
                line,
                mean=student_mean(mine) if mine else None,
                sd=float(np.std(mine, ddof=1)) if len(mine) > 1 else None,
                difference=paired_difference(both[0], both[1]) if both else None,
                gap=gap_recovered(three[0], three[1], three[2], seed=design.seed) if three else None,
                steps=tuple(sorted({row.steps for row in found})),
                seconds=float(np.median([row.seconds for row in done if row.seconds is not None])) if done else None,
                planned=len(found),
                finished=len(done),
                failed=sum(row.status == FAILED for row in found),
            )
        )
    return tuple(lines)


def _of(rows: Iterable[StudyRow], setting: str, num_labels: int, method: str, place: str = FEDERATED) -> list[StudyRow]:
    wanted = (setting, num_labels, method, place)
    return [row for row in rows if (row.setting, row.num_labels, row.method, row.place) == wanted]


def _values(
    rows: Sequence[StudyRow], metric: str, pick: Callable[[Sequence[float]], float] = np.mean
) -> dict[Draw, float]:
    """Return one value per draw: of several hospitals what `pick` takes, once none of them is waiting any more."""
    waiting = {row.draw for row in rows if row.status == WAITING}
    by_draw: dict[Draw, list[float]] = {}
    for row in rows:
        value = getattr(row, metric)
        if row.status == FINISHED and value is not None and row.draw not in waiting:
            by_draw.setdefault(row.draw, []).append(value)
    return {draw: float(pick(values)) for draw, values in by_draw.items()}


def _common(*columns: Mapping[Draw, float]) -> list[list[float]] | None:
    """Return the columns' values on the draws that all of them have, None where there is none."""
    shared = set.intersection(*(set(column) for column in columns))
    return [_units({draw: column[draw] for draw in shared}) for column in columns] if shared else None


def _units(values: Mapping[Draw, float]) -> list[float]:
    """Return the independent values in order: a mean per split-seed, or where there is one split alone, per seed."""
    splits = sorted({split for split, _ in values})
    if len(splits) == 1:
        return [values[draw] for draw in sorted(values)]
    return [float(np.mean([values[draw] for draw in sorted(values) if draw[0] == split])) for split in splits]
