"""Events as lines that a person reads: who answered, what failed and why, how good the model has become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jointdiff.views.format import duration, num_bytes, number, percent
from jointdiff.views.run_data import TROUBLE, mapping

Event = dict[str, Any]
QUESTIONS = {"autoencoder": "keep the autoencoder",
             "describe": "introduce itself", "train": "train", "head": "sum up features", "evaluate": "evaluate",
             "explain": "explain decisions", "keys": "show keys", "shares": "deal shares",
             "unmask": "help to unmask the sum"}  # fmt: skip
DONE = {"autoencoder": "kept the autoencoder",
        "describe": "introduced itself", "train": "trained", "head": "summed up features", "evaluate": "evaluated",
        "explain": "explained decisions", "keys": "showed keys", "shares": "dealt shares",
        "unmask": "helped to unmask the sum"}  # fmt: skip
DOING = {"autoencoder": "sending the autoencoder",
         "describe": "introductions", "train": "training", "head": "solving the head", "evaluate": "evaluating",
         "explain": "explaining decisions", "keys": "agreeing on keys", "shares": "dealing shares",
         "unmask": "unmasking the sum"}  # fmt: skip
WHAT = {"hospital_failed": "failed", "hospital_refused": "refused", "update_rejected": "update rejected",
        "update_questioned": "questioned, but taken"}  # fmt: skip
_NUM_NAMED = 3  # hospitals that one line names; more are counted


def lines(events: Sequence[Event], limit: int) -> list[dict[str, str]]:
    """Return the newest lines first, each with time, text and tone ('', good, bad).

    Answers of many hospitals to one question, one after the other, are one line.

    >>> told = [{"event": "hospital_replied", "hospital": h, "kind": "train", "round": 1} for h in ("a", "b")]
    >>> [line["text"] for line in lines(told, 5)]
    ['Round 1: a, b trained']
    """
    found: list[dict[str, str]] = []
    together: list[Event] = []
    for event in reversed(events):
        if together and not _belong_together(together[0], event):
            found.append(_answers(together))
            together = []
        if len(found) >= limit:
            return found
        if event["event"] == "hospital_replied":
            together.append(event)
        elif (line := line_of(event)) is not None:
            found.append(line)
    return [*found, _answers(together)] if together else found


def line_of(event: Event) -> dict[str, str] | None:
    """Return the line of one event; None for one that says nothing to a reader."""
    kind = event["event"]
    tone = "bad" if kind in (*TROUBLE, "run_failed") else "good" if kind in ("evaluated", "run_finished") else ""
    text = _text(event)
    return None if text is None else {"time": str(event.get("time", "")), "text": text, "tone": tone}


def _belong_together(newer: Event, older: Event) -> bool:
    return all(newer.get(key) == older.get(key) for key in ("event", "kind", "round"))


def _answers(newest_first: Sequence[Event]) -> dict[str, str]:
    events = newest_first[::-1]
    kind, count = str(events[0].get("kind", "")), len(events)
    names = [str(event.get("hospital", "?")) for event in events]
    who = ", ".join(names) if count <= _NUM_NAMED else f"{count} hospitals"
    what = DONE.get(kind, f"answered {kind}")
    if count > 1 and kind == "describe":
        what = "introduced themselves"
    if count == 1 and kind == "train":
        what += f" in {duration(events[0].get('duration_s'))}, sent {num_bytes(events[0].get('bytes_out'))}"
    when = f"Round {events[0]['round']}: " if events[0].get("round") else ""
    return {"time": str(newest_first[0].get("time", "")), "text": f"{when}{who} {what}", "tone": ""}


def _text(event: Event) -> str | None:
    kind, round_number = event["event"], event.get("round")
    reason = str(event.get("reason") or "no reason was recorded")
    if kind in WHAT:
        when = f"Round {round_number}: " if round_number else ""
        question = QUESTIONS.get(str(event.get("kind")), str(event.get("kind") or "the question"))
        return f"{when}{event.get('hospital', '?')}, asked to {question}: {WHAT[kind]}. {reason}"
    if kind == "run_started":
        return f"The run began with {len(event.get('hospitals') or [])} hospitals"
    if kind == "run_resumed":
        return f"The run was carried on after round {round_number}"
    if kind == "phase_started":
        what = "the autoencoder" if event.get("phase") == "autoencoder" else "the model on the autoencoder's latents"
        return (f"Phase {event.get('number', '?')} of {event.get('num_phases', '?')} began, rounds "
                f"{event.get('first_round', '?')} to {event.get('last_round', '?')}: {what}")  # fmt: skip
    if kind == "round_started":
        asked = len(event.get("hospitals") or [])
        return f"Round {round_number} of {event.get('num_rounds', '?')} began, {asked} hospitals asked"
    if kind == "round_repeated":
        return (f"Round {round_number} is repeated: {number(event.get('num_replies'))} good replies, "
                f"{number(event.get('min_hospitals'))} are needed")  # fmt: skip
    if kind == "securely_summed":
        what = "statistics" if event.get("kind") == "head" else "updates"
        dropped = ", ".join(str(name) for name in mapping(event.get("dropped")))
        return (f"Round {round_number}: {what} of {len(event.get('included') or [])} hospitals summed under masks"
                + (f"; dropped out on the way: {dropped}" if dropped else ""))  # fmt: skip
    if kind == "server_set":
        held = mapping(event.get("table")).get("num_labelled")
        return f"The server holds {number(held)} labelled images of its own"
    if kind == "server_trained":
        return (f"Round {round_number}: the server trained on {number(event.get('num_labels'))} labelled images of its "
                f"own in {duration(event.get('duration_s'))}")  # fmt: skip
    if kind == "round_aggregated":
        return f"Round {round_number}: {number(event.get('num_replies'))} updates merged"
    if kind == "evaluated":
        pooled = mapping(event.get("pooled"))
        if "psnr" in pooled:
            return f"Round {round_number}: PSNR {number(pooled['psnr'], 1)} dB, pooled over all hospitals"
        return (f"Round {round_number}: AUC {number(pooled.get('auc'))}, balanced accuracy "
                f"{number(pooled.get('balanced_accuracy'))}, pooled over all hospitals")  # fmt: skip
    if kind == "sampled" and event.get("reason"):
        return str(event["reason"])
    if kind == "sampled":
        share = mapping(event.get("metrics")).get("referee_agreement")
        return "Samples drawn" + (f", a referee agrees with {percent(share)}" if share is not None else "")
    if kind == "explained":
        return f"Decisions explained at {len(mapping(event.get('hospitals')))} hospitals"
    if kind == "run_finished":
        return f"The run finished after {duration(event.get('duration_s'))}"
    if kind == "run_failed":
        return f"The run failed: {reason}"
    return None
