"""One run at one moment, as plain JSON: made from its events and nothing else.

State, round, time left, what every hospital did in every round, what went wrong and why, privacy spent, bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jointdiff.history import History, effective
from jointdiff.views.format import is_number
from jointdiff.views.live import diary
from jointdiff.views.live.matrix import Exchange
from jointdiff.views.run_data import RunData, mapping

SCHEMA_VERSION = 1
NUM_RECENT = 3  # rounds that the time left looks back on, as on the terminal
NUM_LINES = 60  # of the log


def as_run(folder: Path, events: Sequence[dict[str, Any]]) -> RunData:
    """Return a run made of its events alone: the configuration is that of its first event."""
    counting = effective(events)
    started: dict[str, Any] = next((e for e in reversed(counting) if e["event"] == "run_started"), {})
    return RunData(folder, counting, History(counting).to_metrics(), mapping(started.get("config")))


def snapshot(run: RunData, *, written: bool, num_damaged: int = 0) -> dict[str, Any]:
    """Return everything that a page shows of a run, in JSON's own types.

    Args:
        written: Whether a process held the run to write it, asked before the events were read: one that ends in
            between has written its end.
        num_damaged: Lines of events.jsonl that could not be read.
    """
    exchange = Exchange(run.events)
    state, why = state_of(run, written=written)
    number, num_rounds = _round_number(run), _num_rounds(run)
    pooled, best = mapping(run.final.get("pooled")), mapping(run.metrics.get("best"))
    hospitals = _hospitals(run, exchange)
    spent = [entry["epsilon"] for entry in hospitals if entry["epsilon"] is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "run_name": run.run_name,
        "state": state,
        "reason": why,
        "data_set": run.dataset.get("name"),
        "real": run.dataset.get("real") if isinstance(run.dataset.get("real"), bool) else None,
        "method": run.run_config.get("method"),
        "round": number,
        "num_rounds": num_rounds,
        "now": _doing(run, exchange) if state == "running" else "",
        "started": run.started.get("time"),
        "last_event": run.events[-1].get("time") if run.events else None,
        "duration_s": _duration_s(run),
        "done_by": done_by(run, number, num_rounds) if state == "running" else None,
        "pooled": {key: pooled.get(key) for key in (*_MEASURES, "num_images")},
        "best_round": best.get("round"),
        "evaluated": [_evaluated(entry) for entry in run.rounds],
        "hospitals": hospitals,
        "matrix": exchange.matrix(
            [entry["name"] for entry in hospitals], max(num_rounds, number), over=state != "running"
        ),
        "troubles": exchange.troubles,
        "epsilon": max(spent) if spent else None,
        "bytes_to_sites": sum(entry["bytes_to_site"] for entry in hospitals),
        "bytes_from_sites": sum(entry["bytes_from_site"] for entry in hospitals),
        "log": diary.lines(run.events, NUM_LINES),
        "num_damaged": num_damaged,
    }


def state_of(run: RunData, *, written: bool) -> tuple[str, str]:
    """Return running | finished | failed | interrupted | empty, and in words why; '' where nothing is to be said."""
    kind = run.ending.get("event")
    if kind == "run_finished":
        return "finished", ""
    if written:
        return "running", ""  # a run that is being carried on after a failure still has that ending
    if kind == "run_failed":
        how = f" To carry it on: {run.ending['resume']}." if run.ending.get("resume") else ""
        return "failed", str(run.ending.get("reason") or "no reason was recorded") + how
    if not run.events:
        return "empty", "Nothing has been recorded yet."
    return "interrupted", "The process that wrote this run is gone, and left no ending."


def done_by(run: RunData, number: int, num_rounds: int) -> float | None:
    """Return when the last round will be over at the pace of the last ones, in seconds since 1970; None: not known."""
    starts: dict[int, float] = {}
    for event in run.of("round_started"):
        when = seconds(event.get("time"))
        if when is not None and isinstance(event.get("round"), int):
            starts[event["round"]] = when
    ends = {event["round"]: seconds(event.get("time")) for event in run.of("evaluated") if event.get("round") in starts}
    took = [end - starts[n] for n, end in sorted(ends.items()) if end is not None and end >= starts[n]]
    if not took or number not in starts or num_rounds < number:
        return None
    mean = sum(took[-NUM_RECENT:]) / len(took[-NUM_RECENT:])
    return starts[number] + mean * (num_rounds - number + 1)


def seconds(time: Any) -> float | None:
    """Return an event's time as seconds since 1970, None where it has none.

    >>> seconds("1970-01-01T00:01:00.500+00:00")
    60.5
    """
    try:
        return datetime.fromisoformat(str(time)).timestamp()
    except (ValueError, OverflowError):
        return None


def _round_number(run: RunData) -> int:
    numbers = [event.get("round") for event in run.of("round_started", "evaluated")]
    return max((n for n in numbers if isinstance(n, int)), default=0)


def _num_rounds(run: RunData) -> int:
    told = run.last("round_started").get("num_rounds") or run.num_rounds
    return told if isinstance(told, int) and told > 0 else 0


def _duration_s(run: RunData) -> float | None:
    told = run.ending.get("duration_s")
    if told is not None and is_number(told):
        return float(told)
    first = seconds(run.started.get("time"))
    last = seconds(run.events[-1].get("time")) if run.events else None
    return max(0.0, last - first) if first is not None and last is not None else None


def _doing(run: RunData, exchange: Exchange) -> str:
    """Return what goes on at this moment, e.g. 'training, 2 of 3 hospitals answered'."""
    last = next((event for event in reversed(run.events) if event["event"] in _TELLING), {})
    asked = len(run.last("round_started").get("hospitals") or run.hospitals)
    kind = str(last.get("kind", ""))
    if last.get("event") == "round_started":
        kind = "train"
    elif last.get("event") == "round_aggregated":
        return "updates merged, hospitals are asked to evaluate"
    elif last.get("event") in ("evaluated", "explained", "sampled"):
        return "round evaluated" if last["event"] == "evaluated" else "finishing"
    if not kind:
        return "hospitals introduce themselves"
    answered = exchange.num_answered(kind, last.get("round"))
    return f"{diary.DOING.get(kind, kind)}, {answered} of {asked} hospitals answered"


_MEASURES = ("auc", "balanced_accuracy", "psnr")  # psnr of runs that train an autoencoder, the others of all else
_TELLING = ("round_started", "hospital_replied", "hospital_failed", "hospital_refused", "round_aggregated", "evaluated",
            "explained", "sampled")  # fmt: skip


def _evaluated(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measures of one round that curves are drawn of."""

    def measures(values: Any) -> dict[str, Any]:
        return {key: mapping(values).get(key) for key in _MEASURES}

    hospitals = mapping(entry.get("hospitals"))
    return {
        "round": entry.get("round"),
        **measures(entry.get("pooled")),
        "hospitals": {str(name): measures(values) for name, values in hospitals.items()},
    }


def _hospitals(run: RunData, exchange: Exchange) -> list[dict[str, Any]]:
    evaluated = mapping(run.final.get("hospitals"))
    return [
        {
            **exchange.totals(name),
            **{key: mapping(evaluated.get(name)).get(key) for key in ("auc", "psnr")},
            "name": name,
        }
        for name in run.hospitals
    ]
