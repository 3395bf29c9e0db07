"""The page of one run while it goes on: how far, how good, who answered, who did not and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jointdiff.views import report_results, report_run
from jointdiff.views.format import MISSING, duration, is_number, num_bytes, number
from jointdiff.views.labels import METRICS
from jointdiff.views.live.answers import NUM_LARGE, matrix, troubles
from jointdiff.views.live.document import FAST_S, SLOW_S, View, chip, clock, panel, progress, sparkline, tiles
from jointdiff.views.live.snapshot import seconds
from jointdiff.views.markup import Child, Html, banner, element, scrolling, table
from jointdiff.views.run_data import RunData

_OFF = "differential privacy is off: nothing is clipped or noised"


def run_view(
    run: RunData, found: dict[str, Any], *, links: Child = None, galleries: Mapping[str, str] | None = None
) -> View:
    """Return the page of one run.

    Args:
        run: The run, for curves.
        found: Its `snapshot`.
        links: Links to what is served beside the page.
        galleries: Hospital -> address of its explanations, where they can be read from here.
    """
    return View(
        title=_title(found),
        poll_s=_pause_s(found),
        announcement=_announcement(found),
        parts={
            "head": _head(run, found, links),
            "alert": _alert(found),
            "tiles": _tiles(found),
            "rounds": panel("Who answered in which round", matrix(found["matrix"])),
            "side": [
                panel("What went wrong", troubles(found["troubles"], running=found["state"] == "running")),
                panel("Log", _log(found["log"]), note="newest first, UTC"),
            ],
            "curves": panel("Over the rounds", _curves(run, found)),
            "hospitals": panel("The hospitals", _hospitals(found, galleries or {})),
        },
    )


def _pause_s(found: dict[str, Any]) -> float:
    """Return how long to wait for the next look: the page of many hospitals is large, and answers come all the time."""
    if found["state"] != "running":
        return SLOW_S
    return FAST_S if len(found["hospitals"]) <= NUM_LARGE else 3 * FAST_S


def broken_view(name: str, reason: str) -> View:
    """Return the page of a run that cannot be shown."""
    text = element("p", element("b", "This run cannot be shown. "), reason, class_="alert")
    return View(f"{name} - JointDiff", {"head": [element("h1", name, " ", chip("unknown")), text]}, poll_s=SLOW_S)


def time_left(found: dict[str, Any]) -> Html | str:
    """Return the time left; live.js counts it down, so what is rendered depends on the events alone."""
    if found["done_by"] is None:
        return MISSING
    if found["round"] >= found["num_rounds"] and _is_evaluated(found):
        return element("span", "a moment", title="All rounds are done; explanations follow.")
    left = max(0.0, found["done_by"] - (seconds(found["last_event"]) or found["done_by"]))
    return element("span", duration(left), data_done_by=f"{found['done_by']:.1f}")


def _is_evaluated(found: dict[str, Any]) -> bool:
    return any(entry["round"] == found["round"] for entry in found["evaluated"])


def _title(found: dict[str, Any]) -> str:
    name = found["run_name"]
    if found["state"] == "running":
        return f"{found['round']}/{found['num_rounds']} · {name} - JointDiff"
    return f"{found['state']} · {name} - JointDiff"


def _announcement(found: dict[str, Any]) -> str:
    """Return what a person who cannot see the page should hear: once a round, and every trouble."""
    parts = [f"Run {found['state']}."]
    if found["evaluated"]:
        last = found["evaluated"][-1]
        score = f"AUC {number(last['auc'])}" if last["psnr"] is None else f"PSNR {number(last['psnr'], 1)} dB"
        parts.append(f"Round {last['round']} of {found['num_rounds']}: {score}.")
    if found["troubles"]:
        last = max(found["troubles"], key=lambda entry: str(entry["time"]))
        parts.append(f"{last['hospital']}: {last['what']}. {last['reason']}")
    return " ".join(parts)


def _head(run: RunData, found: dict[str, Any], links: Child) -> Child:
    return [
        banner(real=found["real"], where=report_run.data_sentence(run)),
        element("h1", element("span", found["run_name"]), " ", chip(found["state"])),
        element(
            "p",
            f"Method {run.run_config.get('method', MISSING)}, seed {run.run_config.get('seed', MISSING)}, "
            f"started {str(found['started'] or MISSING)[:16].replace('T', ' ')} UTC.",
            class_="lead",
        ),
        element("nav", links, aria_label="Beside this page"),
    ]


def _alert(found: dict[str, Any]) -> Child:
    parts = []
    if found["state"] in ("failed", "interrupted"):
        parts.append(element("p", element("b", f"This run {_HOW[found['state']]}. "), found["reason"], class_="alert"))
    if found["state"] == "empty":
        parts.append(element("p", found["reason"], class_="note"))
    if found["num_damaged"]:
        lines = f"{found['num_damaged']} damaged line{'s' * (found['num_damaged'] > 1)} of events.jsonl left out."
        parts.append(element("p", lines, class_="alert"))
    return parts


_HOW = {"failed": "failed", "interrupted": "was interrupted"}


def _tiles(found: dict[str, Any]) -> Html:
    running = found["state"] == "running"
    shown, total = found["round"], found["num_rounds"]
    done = sum(1 for entry in found["evaluated"])
    bar = progress(done, total, f"{done} of {total} rounds evaluated")
    in_trouble = sum(1 for entry in found["hospitals"] if entry["num_troubles"])
    epsilon = found["epsilon"]
    return tiles([
        ("Round", [str(shown), element("span", f" of {total}", class_="soft")],
         [bar, found["now"] if running else f"{done} evaluated"]),
        *_measured(found["pooled"],
                   f"best round so far: {found['best_round']}" if found["best_round"] and running
                   else f"best round: {found['best_round']}" if found["best_round"] else "pooled over all hospitals"),
        ("Time left", time_left(found), "at the pace of the last rounds; explanations on top") if running
        else ("Duration", duration(found["duration_s"]), "first to last event"),
        ("Hospitals", str(len(found["hospitals"])),
         f"{in_trouble} with failures or refusals" if in_trouble else "no failure, no refusal"),
        ("Privacy spent", f"ε {epsilon:.2f}" if is_number(epsilon) else "off",
         "most at any hospital" if is_number(epsilon) else _OFF),
        ("Exchanged", num_bytes(found["bytes_to_sites"] + found["bytes_from_sites"]),
         f"{num_bytes(found['bytes_to_sites'])} to the sites, {num_bytes(found['bytes_from_sites'])} back"),
    ])  # fmt: skip


def _measured(pooled: dict[str, Any], best: str) -> list[tuple[str, Child, Child]]:
    images = f"pooled, {number(pooled['num_images'])} images"
    if pooled["psnr"] is not None:
        return [("PSNR", f"{number(pooled['psnr'], 1)} dB", images)]
    return [("AUC", number(pooled["auc"]), f"{images}; chance 0.50"),
            ("Balanced accuracy", number(pooled["balanced_accuracy"]), best)]  # fmt: skip


def _curves(run: RunData, found: dict[str, Any]) -> Child:
    drawn = report_results.curves(run, last_round=found["num_rounds"] or None)
    return drawn or element("p", "The first round has not been evaluated yet.", class_="soft waiting-room")


def _hospitals(found: dict[str, Any], galleries: Mapping[str, str]) -> Html:
    measure = "auc" if found["pooled"]["psnr"] is None else "psnr"
    curves: dict[str, list[Any]] = {}
    for entry in found["evaluated"]:
        for name, values in entry["hospitals"].items():
            curves.setdefault(name, []).append(values[measure])
    header = ["Hospital", "Labels", METRICS[measure], "over the rounds", "Privacy spent", "To the site",
              "From the site", "Training", "Device", "Troubles", "Explanations"]  # fmt: skip
    rows = [
        [entry["name"], f"{number(entry['num_labels'])} of {number(entry['num_train'])}", number(entry[measure]),
         sparkline(curves.get(entry["name"], [])),
         f"ε {entry['epsilon']:.2f}" if is_number(entry["epsilon"]) else "off",
         num_bytes(entry["bytes_to_site"]), num_bytes(entry["bytes_from_site"]), duration(entry["train_s"]),
         entry["device"] or MISSING, str(entry["num_troubles"] or "none"),
         element("a", "gallery", href=galleries[entry["name"]]) if entry["name"] in galleries else MISSING]
        for entry in found["hospitals"]
    ]  # fmt: skip
    return element("div", table(header, rows), class_="hospitals")


def _log(lines: list[dict[str, str]]) -> Html:
    items = [_log_line(line) for line in lines] or [element("li", "Nothing yet.")]
    return scrolling(element("ol", items, class_="log"), class_="grid")


def _log_line(line: dict[str, str]) -> Html:
    tone = f"tone-{line['tone']}" if line["tone"] else None
    return element("li", clock(line["time"]), element("span", line["text"]), class_=tone)
