"""The page of one site: its rounds, privacy spent, what left it, its galleries, and its log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from jointdiff.views.format import MISSING, num_bytes, number, words
from jointdiff.views.labels import GRADES, grade_text
from jointdiff.views.live.answers import entry
from jointdiff.views.live.diary import QUESTIONS
from jointdiff.views.live.document import SLOW_S, View, panel, tiles
from jointdiff.views.markup import Child, Html, banner, element, scrolling, table

_POLL_S = 2.0
_SHOWN_GRADES = ("validity", "referee_validity")
_NUM_ROWS = 60  # of the ledger and of what left
_NUM_FAILURES = 20
_LEDGER_COLUMNS = ("#", "Time", "Run", "Round", "Noise multiplier", "Sample rate", "Steps", "ε after it", "Note")


def site_view(found: dict[str, Any]) -> View:
    """Return the page of a site.

    Args:
        found: What `read_site` returned.
    """
    runs, failures = found["runs"], found["failures"]
    kinds = {run["gallery"]["real"] for run in runs if run["gallery"]}
    spoken = f"{len(runs)} runs. " + (f"Last failure: {failures[0]['reason']}" if failures else "No failure.")
    return View(
        title=f"{found['site']} - JointDiff, this site",
        poll_s=_POLL_S if runs else SLOW_S,
        announcement=spoken,
        parts={
            "head": _head(found, real=True if True in kinds else False if kinds == {False} else None),
            "tiles": _tiles(found),
            "runs": panel("Runs that this site took part in", _runs(runs)),
            "ledger": panel("Privacy ledger", _ledger(found["ledger"])),
            "egress": panel("What left this site", _egress(runs)),
            "failures": panel("What went wrong here", _failures(failures)),
            "log": panel("site.log", _log(found["log"]), note="its end; it holds paths and stays here"),
        },
    )


def _head(found: dict[str, Any], *, real: bool | None) -> Child:
    return [
        banner(real=real, where="This page is served to this machine only." if real else ""),
        element("h1", found["site"]),
        element("p", "What this site did and keeps, in ", element("code", found["folder"]), ".", class_="lead"),
    ]


def _tiles(found: dict[str, Any]) -> Html:
    runs, ledger = found["runs"], found["ledger"]
    newest: dict[str, Any] = runs[0] if runs else {}
    left = sum(entry["num_bytes"] for run in runs for entry in run["egress"])
    manifests = sum(len(run["egress"]) for run in runs)
    num_galleries = sum(run["gallery"] is not None for run in runs)
    return tiles([
        ("Runs", str(len(runs)), newest.get("name") or "none yet"),
        ("Last round", number(newest.get("last_round")), ["state kept ", _ago(newest.get("changed"))]),
        ("Privacy spent", *_spent(ledger)),
        ("Left this site", num_bytes(left) if manifests else MISSING,
         f"by {manifests} manifests" if manifests else "no manifest is written"),
        ("Galleries", str(num_galleries), "explained decisions; they stay here"),
        ("Failures", str(len(found["failures"])), "in the part of site.log below"),
    ])  # fmt: skip


def _spent(ledger: dict[str, Any] | None) -> tuple[str, str]:
    """Return epsilon, and what is to be known about it."""
    if ledger is None:
        return "off", "there is no ledger: nothing is clipped or noised"
    if "error" in ledger:
        return MISSING, "the ledger does not hold: see below"
    ceiling = "" if ledger["ceiling"] is None else f" of {ledger['ceiling']:g}"
    return f"ε {_epsilon(ledger['epsilon'])}{ceiling}", f"δ {ledger['delta']:g}, over all runs of this site"


def _epsilon(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def _runs(runs: list[dict[str, Any]]) -> Child:
    if not runs:
        return element("p", "None yet. The first round of a run appears here by itself.", class_="soft")
    header = [
        "Run",
        "Last round",
        "Last change",
        "Left the site",
        *(GRADES[key][0] for key in _SHOWN_GRADES),
        "Gallery",
    ]
    rows = [
        [run["name"], number(run["last_round"]), _ago(run["changed"]),
         num_bytes(sum(entry["num_bytes"] for entry in run["egress"])) if run["egress"] else MISSING,
         *(grade_text(key, run["gallery"]["metrics"].get(key)) if run["gallery"] else MISSING for key in _SHOWN_GRADES),
         element("a", f"{number(run['gallery']['num_scans'])} scans", href=run["gallery"]["address"])
         if run["gallery"] else MISSING]
        for run in runs
    ]  # fmt: skip
    return table(header, rows)


def _ledger(ledger: dict[str, Any] | None) -> Child:
    if ledger is None:
        return element("p", "This site keeps no ledger: differential privacy is off, and no guarantee is given.",
                       class_="soft")  # fmt: skip
    if "error" in ledger:
        return element("p", element("b", "The ledger does not hold. "), ledger["error"], class_="alert")
    entries = ledger["entries"]
    terms = [f"{words(key)}: {ledger[key]}" for key in ("unit", "adjacency", "delta")]
    rows = [
        [number(entry["number"]), _utc(entry["time"]), entry["run"], number(entry["round"]),
         number(entry["noise_multiplier"]), number(entry["sample_rate"]), number(entry["steps"]),
         _epsilon(entry["epsilon"]), entry["note"]]
        for entry in entries[::-1][:_NUM_ROWS]
    ]  # fmt: skip
    more = len(entries) - _NUM_ROWS
    return [
        element("p", ". ".join(terms), class_="note"),
        element("div", table(_LEDGER_COLUMNS, rows), class_="hospitals") if rows else None,
        element("p", f"{more} older entries are in ledger.json.", class_="note") if more > 0 else None,
    ]


def _egress(runs: list[dict[str, Any]]) -> Child:
    entries = [(run["name"], entry) for run in runs for entry in run["egress"]]
    if not entries:
        return element("p", "No manifest of what leaves is written here. The coordinator's report counts bytes.",
                       class_="soft")  # fmt: skip
    rows = [
        [name, number(entry["round"]), number(entry["num_replies"]), number(entry["num_parts"]),
         num_bytes(entry["num_bytes"]) if entry["error"] is None else "cannot be read", number(entry["num_stopped"])]
        for name, entry in entries[:_NUM_ROWS]
    ]  # fmt: skip
    more = len(entries) - _NUM_ROWS
    return [
        element(
            "p",
            "Written before it left; ",
            element("code", "jointdiff-client egress --explain"),
            " says what each thing is, and verifies the record.",
            class_="note",
        ),
        element(
            "div", table(["Run", "Round", "Replies", "Tensors and values", "Size", "Stopped"], rows), class_="hospitals"
        ),
        element("p", f"{more} older ones are in egress/.", class_="note") if more > 0 else None,
    ]


def _failures(failures: list[dict[str, Any]]) -> Child:
    if not failures:
        return element("p", "Nothing: site.log tells of no failure.", class_="soft")
    items = [
        entry(f"Round {failure['round']}" if failure["round"] else "Before the first round", "failed", "failed",
              failure["reason"],
              f"Asked to {QUESTIONS.get(failure['kind'], failure['kind'])}, {_utc(failure['time'])}.")
        for failure in failures[:_NUM_FAILURES]
    ]  # fmt: skip
    return element("ul", items, class_="troubles", tabindex="0", aria_label="Failures, newest first")


def _log(text: str) -> Child:
    if not text:
        return element("p", "Empty: nothing has failed here.", class_="soft")
    return element("details", element("summary", "Show"), scrolling(element("pre", text), class_="tail"))


def _utc(time: str) -> str:
    return time[:19].replace("T", " ") + " UTC"


def _ago(changed: float | None) -> Html | str:
    """Return a moment; live.js turns it into the time since."""
    if changed is None:
        return MISSING
    text = datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return element("span", text, title=text, data_since=f"{changed:.0f}")
