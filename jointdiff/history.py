"""What a run's events add up to: the events that still count, and the numbers of metrics.json.

events.jsonl is the only source; everything else that shows a run is made from it. Pure: events in, dicts out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SCHEMA_VERSION = 1  # of metrics.json
Event = Mapping[str, Any]


class History:
    """The numbers of a run so far, kept by taking in its events one by one."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.rounds: dict[int, dict[str, Any]] = {}
        self._bests: list[int] = []  # rounds whose weights were the best so far
        self._training: dict[int, Any] = {}
        self._sections: dict[str, dict[str, Any]] = {"samples": {}, "explanations": {}}
        for event in effective(events):
            self.add(event)

    def add(self, event: Event) -> bool:
        """Take in the next event; return whether the numbers have changed."""
        kind, number = event["event"], _round(event)
        if kind == "round_aggregated":
            self._training[number] = event.get("metrics") or {}
        elif kind == "evaluated":
            self.rounds[number] = {
                "round": number,
                "pooled": event.get("pooled") or {},
                "hospitals": event.get("hospitals") or {},
                "heldout_auc": event.get("heldout_auc"),
                "training": self._training.get(number, {}),
                **({"withheld": event["withheld"]} if event.get("withheld") else {}),
            }
        elif kind == "checkpoint_saved" and event.get("kind") == "best":
            self._bests.append(number)
        elif kind == "run_resumed":
            self.rounds = {n: entry for n, entry in self.rounds.items() if n <= number}
            self._bests = [n for n in self._bests if n <= number]
            self._sections = {key: {} for key in self._sections}
        elif kind in _SECTIONS:
            self._sections[_SECTIONS[kind]] = {
                k: v for k, v in event.items() if k not in ("schema_version", "time", "event")
            }
        else:
            return False
        return kind != "round_aggregated"

    @property
    def best(self) -> dict[str, Any]:
        """The entry of the round whose weights are checkpoints/best, {} before the first."""
        return self.rounds.get(self._bests[-1], {}) if self._bests else {}

    @property
    def final(self) -> dict[str, Any]:
        """The last round's entry, {} before the first."""
        return self.rounds[max(self.rounds)] if self.rounds else {}

    def to_metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json."""
        rounds = [self.rounds[number] for number in sorted(self.rounds)]
        return {
            "schema_version": SCHEMA_VERSION, "rounds": rounds, "best": self.best, "final": self.final, **self._sections
        }  # fmt: skip


_SECTIONS = {"sampled": "samples", "explained": "explanations"}


def effective(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return the events that still count: `run_resumed` at round N takes back what came after round N.

    Of a given-up attempt its rounds, its results and its end are dropped. Troubles of hospitals stay: they happened.

    >>> told = [{"event": "run_started"}, {"event": "evaluated", "round": 1}, {"event": "evaluated", "round": 2},
    ...         {"event": "run_failed"}, {"event": "run_resumed", "round": 1}]
    >>> [(e["event"], e.get("round")) for e in effective(told)]
    [('run_started', None), ('evaluated', 1), ('run_resumed', 1)]
    """
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "run_resumed":
            last = _round(event)
            kept = [e for e in kept if e["event"] in _LASTING or (e["event"] in _OF_A_ROUND and _round(e) <= last)]
        kept.append(dict(event))
    return kept


_LASTING = (
    "run_started", "run_resumed", "server_set", "hospital_failed", "hospital_refused", "update_rejected",
    "update_questioned", "round_repeated",
)  # fmt: skip
_OF_A_ROUND = (
    "phase_started", "round_started", "hospital_replied", "securely_summed", "server_trained", "round_aggregated",
    "evaluated", "checkpoint_saved",
)  # fmt: skip


def _round(event: Event) -> int:
    number = event.get("round")
    return number if isinstance(number, int) else 0


def how_to_resume(run_name: str) -> str:
    """Return what a person types to carry a run on that has ended early.

    >>> how_to_resume("mine")
    "jointdiff-server resume mine (or flwr run with run-name='mine' resume=true)"
    """
    return f"jointdiff-server resume {run_name} (or flwr run with run-name='{run_name}' resume=true)"
