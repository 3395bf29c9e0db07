"""The page of all runs of a home: which ones go on, how far they are, how good they have become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from jointdiff.views.format import MISSING, duration, number
from jointdiff.views.live.document import FAST_S, SLOW_S, STATES, View, chip, progress, sparkline
from jointdiff.views.live.run_page import time_left
from jointdiff.views.markup import Child, Html, element

_COLUMNS = ("Run", "State", "Round", "Hospitals", "Method", "Data set", "AUC", "Time", "Started (UTC)")
_KEPT = ("state", "reason", "data_set", "real", "method", "round", "num_rounds", "now", "started", "last_event",
         "duration_s", "done_by", "pooled")  # fmt: skip


def compact(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return what the overview shows of a run: small, since there may be hundreds of runs.

    Args:
        name: The run's folder: the name that links are made of.
        found: The run's `snapshot`.
    """
    return {key: found[key] for key in _KEPT} | {
        "name": name,
        "num_hospitals": len(found["hospitals"]),
        "num_troubles": sum(entry["num_troubles"] for entry in found["hospitals"]),
        "evaluated": [{"round": entry["round"], "auc": entry["auc"]} for entry in found["evaluated"]],
    }


def unreadable(name: str, reason: str) -> dict[str, Any]:
    """Return the same for a run that cannot be read."""
    return dict.fromkeys(_KEPT) | {
        "name": name, "state": "unknown", "reason": reason, "round": 0, "num_rounds": 0, "pooled": {}, "evaluated": [],
        "num_hospitals": 0, "num_troubles": 0,
    }  # fmt: skip


def overview_view(runs: Sequence[dict[str, Any]], home: str) -> View:
    """Return the page of all runs.

    Args:
        runs: `compact` of each.
        home: The folder that holds them, as it is shown.
    """
    ordered = sorted(runs, key=lambda run: str(run["started"] or ""), reverse=True)
    ordered.sort(key=lambda run: run["state"] != "running")
    counts = Counter(run["state"] for run in runs)
    told = ", ".join(f"{counts[state]} {words}" for state, words in STATES.items() if counts[state])
    running = counts["running"]
    head = [
        element("h1", "Runs"),
        element("p", f"{told or 'None yet'}, in ", element("code", home), ".", class_="lead"),
        element("p", "Research use, no medical device.", class_="note"),
    ]
    return View(
        title=f"{f'({running}) ' if running else ''}Runs - JointDiff",
        poll_s=FAST_S if running else SLOW_S,
        announcement=f"{told or 'No run yet'}.",
        parts={"head": head, "runs": _table(ordered)},
    )


def _table(runs: Sequence[dict[str, Any]]) -> Child:
    if not runs:
        return element("p", "A run that begins appears here by itself. ", element("code", "make simulate"),
                       " begins one.", class_="alert")  # fmt: skip
    head = element("tr", [element("th", name, scope="col") for name in _COLUMNS])
    rows = [_row(run) for run in runs]
    return element("table", element("thead", head), element("tbody", rows), class_="runs")


def _row(run: dict[str, Any]) -> Html:
    running = run["state"] == "running"
    shown, total = run["round"], run["num_rounds"]
    note = run["now"] if running else run["reason"]
    real = {True: "real scans", False: "phantoms"}.get(run["real"])
    troubles = f"{run['num_troubles']} troubles" if run["num_troubles"] else None
    cells: list[Child] = [
        [chip(run["state"]), element("small", note, class_="one-line", title=note) if note else None],
        [f"{shown} of {total}" if total else MISSING,
         progress(len(run["evaluated"]), total, f"{len(run['evaluated'])} of {total} rounds evaluated")],
        [number(run["num_hospitals"]), element("small", troubles) if troubles else None],
        str(run["method"] or MISSING),
        [str(run["data_set"] or MISSING), element("small", real) if real else None],
        [number(run["pooled"].get("auc")), sparkline([entry["auc"] for entry in run["evaluated"]])],
        [element("span", "left ", class_="soft"), time_left(run)] if running else _took(run["duration_s"]),
        str(run["started"] or MISSING)[:16].replace("T", " "),
    ]  # fmt: skip
    name = element("th", element("a", run["name"], href=f"/runs/{quote(run['name'], safe='')}"), scope="row")
    return element("tr", name, [element("td", cell, data_label=label)
                                for cell, label in zip(cells, _COLUMNS[1:], strict=True)])  # fmt: skip


def _took(duration_s: float | None) -> Child:
    return MISSING if duration_s is None else [element("span", "took ", class_="soft"), duration(duration_s)]
