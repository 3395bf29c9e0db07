"""Where the time of a round goes, from a run's events alone: what the hospitals computed, and what else passed. Pure.

A hospital's reply is an event with its time of arrival and how long the work took; beside that a site reports
seconds.load and seconds.save (its data, the model, its own state) and the seconds of the work itself. Whatever of a
round is covered by no hospital's work is the price of federating. Times are the server's clock and a reply is noted
when it is noticed, so work is placed a little late; what happens at a site after its report was made (allow-list,
manifest, serialising) counts as on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jointdiff.protocol import EVALUATE, HEAD, KEYS, SHARES, TRAIN, UNMASK

PREFIX = "seconds."  # of the scalars in a hospital's report
LOAD, SAVE = PREFIX + "load", PREFIX + "save"
REPORTED = {TRAIN: (LOAD, PREFIX + TRAIN, SAVE), HEAD: (LOAD, PREFIX + HEAD), EVALUATE: (LOAD, PREFIX + EVALUATE)}
# In order of precedence: an instant in which two things happen, at two hospitals, counts for the first.
PARTS = {
    "training": "hospitals train",
    "evaluation": "hospitals evaluate",
    "head": "hospitals add up features for the head",
    "masking": "hospitals exchange keys and shares of a secure sum",
    "loading": "hospitals load data and model, and save their state",
    "merging": "server checks and merges",
    "scoring": "server scores",
    "writing": "server writes state and checkpoints",
    "on the way": "on the way: messages, Flower, starting processes, the site's border, waiting",
}
WORK = ("training", "evaluation", "head")
_KINDS = {TRAIN: "training", EVALUATE: "evaluation", HEAD: "head", KEYS: "masking", SHARES: "masking",
          UNMASK: "masking"}  # fmt: skip
Event = Mapping[str, Any]
Span = tuple[float, float]


@dataclass(frozen=True)
class RoundProfile:
    """One round's seconds: `parts` has every key of PARTS and adds up to `duration_s`."""

    number: int
    duration_s: float
    parts: Mapping[str, float]

    @property
    def other_share(self) -> float:
        """The share of the round in which no hospital trains, adds up for the head, or evaluates."""
        return share_without_work(self.parts)


def share_without_work(parts: Mapping[str, float]) -> float:
    """Return the share of the seconds that is no work of a hospital; 0 where there are none.

    >>> share_without_work({"training": 8.0, "evaluation": 1.0, "on the way": 1.0})
    0.1
    """
    total = sum(parts.values())
    return round(1 - sum(parts.get(name, 0.0) for name in WORK) / total, 12) if total else 0.0


def round_profiles(events: Iterable[Event]) -> list[RoundProfile]:
    """Return the profile of every round that was evaluated.

    Args:
        events: Those that still count (`history.effective`), in order.
    """
    rounds: dict[int, list[Event]] = {}
    ends: dict[int, float] = {}
    number = 0
    for event in events:
        kind = event["event"]
        if kind == "round_started":
            if number in rounds:
                ends[number] = _time(event)  # the round before ends here, unless the run stopped in between
            number = int(event["round"])
            rounds[number] = [event]
        elif kind == "run_resumed":
            number = 0
        elif number and kind in _OF_A_ROUND and event.get("round") == number and event.get("kind") in _ASKED:
            rounds[number].append(event)
    return [
        _profile(number, found, ends.get(number, _time(found[-1])))
        for number, found in rounds.items()
        if any(event["event"] == "evaluated" for event in found)
    ]


_OF_A_ROUND = ("hospital_replied", "round_aggregated", "evaluated", "checkpoint_saved")
_ASKED = (None, "last", "best", *_KINDS)  # `kind` of a reply or of a checkpoint; explaining is no part of a round


def total_parts(profiles: Sequence[RoundProfile]) -> dict[str, float]:
    """Return the seconds of each part, summed over rounds."""
    return {name: sum(profile.parts[name] for profile in profiles) for name in PARTS}


def hospital_seconds(events: Iterable[Event]) -> dict[str, dict[str, float]]:
    """Return what each hospital said of its own seconds, summed over the run: {hospital: {load: s, train: s, ...}}."""
    found: dict[str, dict[str, float]] = {}
    for event in events:
        if event["event"] == "hospital_replied":
            for name, value in (event.get("metrics") or {}).items():
                if name.startswith(PREFIX) and isinstance(value, int | float):
                    own = found.setdefault(str(event.get("hospital")), {})
                    own[name.removeprefix(PREFIX)] = own.get(name.removeprefix(PREFIX), 0.0) + value
    return found


def _profile(number: int, events: Sequence[Event], end: float) -> RoundProfile:
    spans: dict[str, list[Span]] = {name: [] for name in PARTS}
    last_reply: dict[str, float] = {}
    start = _time(events[0])
    for event in events:
        at, kind = _time(event), event["event"]
        if kind == "hospital_replied":
            last_reply[event["kind"]] = at
            whole, work = _spans(event)
            spans["loading"].append(whole)
            spans[_KINDS[event["kind"]]].append(work)
        elif kind == "round_aggregated":
            spans["merging"].append((last_reply.get(UNMASK, last_reply.get(TRAIN, at)), at))
        elif kind == "evaluated":
            spans["scoring"].append((last_reply.get(EVALUATE, at), at))
            spans["writing"].append((at, end))
    spans["on the way"].append((start, end))
    return RoundProfile(number, end - start, _covered(start, end, spans))


def _spans(event: Event) -> tuple[Span, Span]:
    """Return when a hospital was at it, and when of that it worked; all of it where it does not say."""
    end, duration = _time(event), float(event.get("duration_s") or 0.0)
    said = event.get("metrics") or {}
    work = said.get(PREFIX + event["kind"])
    if not isinstance(work, int | float):
        return (end - duration, end), (end - duration, end)
    begin = end - duration + float(said.get(LOAD) or 0.0)
    return (end - duration, end), (begin, min(begin + work, end))


def _covered(start: float, end: float, spans: Mapping[str, Sequence[Span]]) -> dict[str, float]:
    """Return the seconds of [start, end] of each name; where several cover an instant the first name has it."""
    cuts = sorted({start, end, *(min(max(t, start), end) for group in spans.values() for span in group for t in span)})
    parts = dict.fromkeys(spans, 0.0)
    for low, high in itertools.pairwise(cuts):
        name = next(n for n, group in spans.items() if any(a <= low and high <= b for a, b in group))
        parts[name] += high - low
    return parts


def _time(event: Event) -> float:
    return datetime.fromisoformat(str(event["time"])).timestamp()
