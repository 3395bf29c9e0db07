"""Who answered in which round: the exchange between server and hospitals, added up in one pass over the events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jointdiff.views.format import is_number
from jointdiff.views.live.diary import QUESTIONS, WHAT
from jointdiff.views.run_data import mapping

Event = dict[str, Any]
MAX_COLUMNS = 60  # rounds that a matrix shows; of longer runs the newest
OK, MENDED, WAITING, MISSED, NONE = "ok", "mended", "waiting", "missed", "none"
TROUBLES = {"hospital_failed": "failed", "hospital_refused": "refused", "update_rejected": "rejected",
            "update_questioned": "mended"}  # fmt: skip


class Exchange:
    """What every hospital was asked, did, sent and received."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.troubles: list[dict[str, Any]] = []  # one per hospital, question, and reason; with all its rounds
        self._latest: dict[tuple[str, Any], dict[str, str]] = {}  # (hospital, round) -> question -> status
        self._trouble_at: dict[tuple[str, Any], int] = {}  # (hospital, round) -> position in troubles
        self._groups: dict[tuple[str, ...], int] = {}
        self._asked: dict[Any, set[str]] = {}
        self._evaluated: set[Any] = set()
        self._newest: Any = 0
        self._totals: dict[str, dict[str, Any]] = {}
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        kind, number = event["event"], event.get("round")
        if kind == "round_started":
            self._asked[number] = {str(name) for name in event.get("hospitals") or []}
            self._newest = number
        elif kind == "evaluated":
            self._evaluated.add(number)
        elif kind == "hospital_replied":
            self._replied(event)
        elif kind in TROUBLES:
            self._trouble(event)

    def _replied(self, event: Event) -> None:
        name = str(event.get("hospital"))
        self._latest.setdefault((name, event.get("round")), {})[str(event.get("kind"))] = OK
        total = self._total(name)
        total["num_answers"] += 1
        total["bytes_to_site"] += _count(event.get("bytes_in"))
        total["bytes_from_site"] += _count(event.get("bytes_out"))
        if event.get("kind") == "train":
            total["train_s"] += event["duration_s"] if is_number(event.get("duration_s")) else 0.0
        if event.get("device"):
            total["device"] = str(event["device"])
        epsilon = mapping(event.get("metrics")).get("epsilon")
        if epsilon is not None and is_number(epsilon):
            total["epsilon"] = max(float(epsilon), total["epsilon"] or 0.0)
        table = mapping(event.get("table"))
        if table:
            total["num_train"] = table.get("num_train")
            labelled = table.get("labelled")
            total["num_labels"] = sum(map(_count, labelled)) if isinstance(labelled, list) else None

    def _trouble(self, event: Event) -> None:
        name, number, kind = str(event.get("hospital")), event.get("round"), str(event.get("kind") or "")
        status, reason = TROUBLES[event["event"]], str(event.get("reason") or "no reason was recorded")
        self._latest.setdefault((name, number), {})[kind] = status
        self._total(name)["num_troubles"] += 1
        group = (name, kind, status, reason)
        if group not in self._groups:
            self._groups[group] = len(self.troubles)
            self.troubles.append({
                "id": f"trouble-{len(self.troubles) + 1}", "hospital": name, "kind": kind, "status": status,
                "question": QUESTIONS.get(kind, kind), "what": WHAT[event["event"]], "reason": reason, "rounds": [],
            })  # fmt: skip
        index = self._groups[group]
        self.troubles[index]["time"] = event.get("time")
        if number not in self.troubles[index]["rounds"]:
            self.troubles[index]["rounds"].append(number)
        self._trouble_at[name, number] = index

    def _total(self, hospital: str) -> dict[str, Any]:
        return self._totals.setdefault(hospital, dict(_EMPTY))

    def totals(self, hospital: str) -> dict[str, Any]:
        """Return the sums of one hospital: answers, troubles, bytes, training time, epsilon, labels."""
        return dict(self._totals.get(hospital, _EMPTY))

    def num_answered(self, kind: str, number: Any) -> int:
        """Return how many hospitals have answered a question of a round, well or not."""
        return sum(kind in found for (_, at), found in self._latest.items() if at == number)

    def matrix(self, hospitals: Sequence[str], num_rounds: int, *, over: bool = False) -> dict[str, Any]:
        """Return rounds and one row per hospital: a status for each round, and which trouble explains it.

        Status: ok | mended (answered after a trouble) | failed | refused | rejected | waiting | missed (no answer in a
        round that is over) | none (not asked).

        Args:
            over: Whether the run has ended, so that nobody is waited for any more.
        """
        newest = self._newest if isinstance(self._newest, int) else 0
        last = min(num_rounds, max(newest + 5, MAX_COLUMNS))
        rounds = list(range(max(1, last - MAX_COLUMNS + 1), last + 1))
        rounds = [0, *rounds] if not rounds or rounds[0] == 1 else rounds
        rows = []
        for name in hospitals:
            cells, links = [], {}
            for number in rounds:
                cells.append(self._cell(name, number, over))
                index = self._trouble_at.get((name, number))
                if index is not None:
                    links[str(number)] = self.troubles[index]["id"]
            rows.append({"hospital": name, "cells": cells, "troubles": links})
        return {"rounds": rounds, "newest": newest, "rows": rows}

    def _cell(self, hospital: str, number: int, over: bool) -> str:
        found = self._latest.get((hospital, number), {})
        for status in ("rejected", "failed", "refused"):
            if status in found.values():
                return status
        if found:
            return MENDED if (hospital, number) in self._trouble_at else OK
        if hospital not in self._asked.get(number, ()):
            return NONE
        return MISSED if over or number in self._evaluated or number != self._newest else WAITING


_EMPTY: dict[str, Any] = {
    "num_answers": 0, "num_troubles": 0, "bytes_to_site": 0, "bytes_from_site": 0, "train_s": 0.0, "device": None,
    "epsilon": None, "num_train": None, "num_labels": None,
}  # fmt: skip


def _count(value: Any) -> int:
    return int(value) if is_number(value) else 0
