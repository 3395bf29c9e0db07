"""How a study's numbers are said, the same in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from jointdiff.paired import Interval
from jointdiff.study_summary import CENTRALISED, LOCAL_ONLY, Cell, Line, StudyFacts
from jointdiff.views.format import MISSING, duration, number, percent

UNNAMED = "default"
METRIC_NAMES = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "log_loss": "log-loss",
}


def labels(count: int) -> str:
    """Return a number of labels in words.

    >>> labels(12), labels(0)
    ('12 labels', 'all labels')
    """
    return f"{count} labels" if count else "all labels"


def title(setting: str, count: int) -> str:
    """Return the name of a table; the only setting of a study that names none goes unnamed.

    >>> title("iid", 12), title("default", 6)
    ('iid, 12 labels', '6 labels')
    """
    return labels(count) if setting == UNNAMED else f"{setting}, {labels(count)}"


def split_name(facts: StudyFacts) -> str:
    """Return the evaluation split in words."""
    return {"val": "validation"}.get(facts.split, facts.split)


def mean(line: Line) -> str:
    """Return a mean with its standard deviation."""
    if line.mean is None:
        return MISSING
    return number(line.mean.value) + (f" ({number(line.sd)})" if line.sd is not None else "")


def interval(found: Interval | None) -> str:
    """Return limits as [low, high]."""
    if found is None or found.low is None or found.high is None:
        return MISSING
    return f"[{number(found.low)}, {number(found.high)}]"


def signed(found: Interval | None) -> str:
    """Return a difference with half the width of its interval.

    >>> signed(Interval(0.014, 0.006, 0.022, 10)), signed(Interval(-0.2, None, None, 1))
    ('+0.014 ± 0.008', '-0.200')
    """
    if found is None:
        return MISSING
    half = f" ± {(found.high - found.low) / 2:.3f}" if found.low is not None and found.high is not None else ""
    return f"{found.value:+.3f}{half}"


def share(found: Interval | None) -> str:
    """Return a share of a gap with its interval.

    >>> share(Interval(0.5, 0.25, 0.625, 9))
    '50% [25, 62]'
    """
    if found is None:
        return MISSING
    limits = (
        f" [{100 * found.low:.0f}, {100 * found.high:.0f}]" if found.low is not None and found.high is not None else ""
    )
    return f"{100 * found.value:.0f}%{limits}"


def steps(line: Line) -> str:
    """Return the optimiser steps of a line's runs."""
    return " to ".join(number(count) for count in {line.steps[0]: 0, line.steps[-1]: 0}) if line.steps else MISSING


def seconds(line: Line) -> str:
    """Return the median seconds of a line's runs."""
    return duration(line.seconds)


def runs(line: Line) -> str:
    """Return how many runs have finished, and how many failed."""
    waiting = line.planned - line.finished - line.failed
    told = [f"{line.finished} of {line.planned}" if line.finished < line.planned else str(line.planned)]
    told += [f"{line.failed} failed"] * bool(line.failed) + [f"{waiting} to do"] * bool(waiting)
    return ", ".join(told)


def draws(line: Line) -> str:
    """Return n."""
    return number(line.mean.n) if line.mean else "0"


def columns(cell: Cell, reference: str) -> tuple[list[str], list[list[str]]]:
    """Return head and body of a cell's table; columns in which nothing stands are left out."""
    makers = {
        "n": draws,
        "mean (sd)": mean,
        "95% interval": lambda line: interval(line.mean),
        f"{reference} minus it, 95%": lambda line: signed(line.difference),
        "gap recovered, 95%": lambda line: share(line.gap),
        "steps": steps,
        "seconds, median": seconds,
        "runs": runs,
    }
    body = {name: [make(line) for line in cell.lines] for name, make in makers.items()}
    kept = [name for name, cells in body.items() if any(entry != MISSING for entry in cells)]
    return ["method", *kept], [[line.label, *(body[name][i] for name in kept)] for i, line in enumerate(cell.lines)]


def what_is_equal(facts: StudyFacts, places: Sequence[str]) -> list[str]:
    """Return what the rows of a study have in common, and what they have not, sentence by sentence."""
    lines = [
        f"Every number is that of a run's last round on the {split_name(facts)} images of all hospitals together; "
        "nothing was chosen on them here.",
        "n counts draws: split-seeds, over which the training seeds are averaged; with one split-seed, the seeds.",
        "Intervals of means and of paired differences are Student's; a difference is taken on the same draws. "
        "Intervals cover the draws of labels and partition, not other data sets.",
        "Steps are optimiser steps of one hospital, at the same batch size unless the study file says otherwise. "
        "Seconds are those of the whole run, all hospitals one after the other, beside other runs on the same machine: "
        "read them as ratios.",
    ]
    lines += [
        f"{'These' if setting == UNNAMED else f'In {setting} these'} images are shown as each of {count} scanners "
        "would show them that no hospital has."
        for setting, count in facts.eval_scanners.items()
        if count
    ]
    if CENTRALISED in places:
        much = (
            "as many steps as all hospitals together, so as many images pass through the network"
            if facts.centralised_steps == "total"
            else "as many steps as one hospital, so the weights are updated as often"
        )
        lines.append(
            "Centralised: the same images with the same scanners, the same kept and held-out labels, the same network, "
            f"preset, seed, batch size and number of rounds, in one place without averaging; {much}."
        )
    if LOCAL_ONLY in places:
        lines.append(
            "Local-only: every hospital on its own share and its own kept labels, as many steps as in the federation, "
            "measured on the evaluation images of all hospitals: `mean` over the hospitals; `best` takes, draw by "
            "draw, the hospital that turned out best on these images, which nobody could have known: it flatters "
            "local-only."
        )
    lines.append(
        "Gap recovered: (mean of the method - mean of labelled-only) / (mean with all labels - mean of labelled-only) "
        "on the draws that all three have; its interval is a percentile bootstrap over draws."
    )
    return lines


def finished_share(rows_finished: int, rows_planned: int) -> str:
    """Return how much of a study is done."""
    return percent(rows_finished / rows_planned) if rows_planned else MISSING
