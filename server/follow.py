"""Watch a run until it ends, and say how it really ended: Flower's own word and the run's events must agree."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jointdiff import storage
from jointdiff.errors import JointDiffError
from jointdiff.events import EventLog, parse_event, read_events
from jointdiff.history import effective, how_to_resume
from jointdiff.views.report import write_report
from server.deployment.control import RunStatus

LOOK_S = 0.3  # between two looks at the files
ASK_S = 30.0  # between two questions to Flower; each costs a Python process
ENDING_S = 2.0  # the same, once the run has written its end, or lets go of its folder
TASK_ENDED = re.compile(r"Finished task|Failed task|Stopped task|All logs for run ID")  # in a SuperLink's log
EVENTS_GRACE_S = 5.0  # for events to arrive once Flower calls a run finished


class Flower(Protocol):
    """Whatever runs the run: a daemon of its own, or a deployment."""

    def trouble(self) -> str:
        """Return why the run cannot end any more, '' while it can."""

    def has_news(self) -> bool:
        """Say whether something may just have ended, so that it is worth asking at once."""

    def status(self, run_id: str) -> RunStatus:
        """Ask how a run stands; raises RunError where that is fatal."""

    def last_lines(self, run_id: str) -> tuple[str, ...]:
        """Return the end of the run's log."""


@dataclass(frozen=True)
class Verdict:
    """How a run ended."""

    ok: bool
    cause: str = ""  # why it failed
    log_lines: tuple[str, ...] = ()  # the end of Flower's log, where the cause alone may not be enough
    report: str = ""  # absolute path of report.html


class Tail:
    """The lines that have been added to a text file since the last look; the file may not be there yet."""

    def __init__(self, path: Path, position: int = 0) -> None:
        """Begin at byte `position` of `path`."""
        self.path = path
        self._position = position

    def lines(self) -> list[str]:
        """Return the new whole lines; one that is still being written waits for the next look."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


class Follower:
    """Hands on the events of one run, and judges its end."""

    def __init__(
        self,
        flower: Flower,
        run_id: str,
        run_folder: Path,
        show: Callable[[dict[str, Any]], None],
        *,
        position: int = 0,
    ) -> None:
        """Prepare to follow.

        Args:
            flower: What runs it.
            run_id: Flower's id of the run.
            run_folder: Where events.jsonl appears.
            show: Called with every event.
            position: Bytes of events.jsonl that were there before: those of an attempt that was given up.
        """
        self._flower = flower
        self._run_id = run_id
        self._folder = run_folder
        self._events = Tail(run_folder / "events.jsonl", position)
        self._show = show
        self._end: dict[str, Any] = {}  # the event run_finished or run_failed
        self._written = False  # whether a server has been seen to hold the run's folder

    def wait(self) -> Verdict:
        """Follow until the run has ended.

        Raises:
            RunError: Flower does not answer any more, where that is the end.
        """
        ask_at = time.monotonic() + ASK_S
        while True:
            ended = self._has_ended()
            if trouble := self._flower.trouble():
                self._hand_on()
                return Verdict(False, trouble, self._flower.last_lines(self._run_id))
            if ended:
                ask_at = min(ask_at, time.monotonic() + ENDING_S)
            if self._flower.has_news() or time.monotonic() > ask_at:
                status = self._flower.status(self._run_id)
                if status.is_finished:
                    return self._judge(status.status, status.details)
                ask_at = time.monotonic() + (ENDING_S if ended else ASK_S)
            time.sleep(LOOK_S)

    def _has_ended(self) -> bool:
        """Hand on what is new; say whether the run has written its end, or its server is gone from the folder."""
        self._hand_on()
        writing = storage.is_locked(self._folder)
        self._written = self._written or writing
        return bool(self._end) or (self._written and not writing)

    def _hand_on(self) -> None:
        for line in self._events.lines():
            event = parse_event(line)
            if event is None:
                continue
            if event["event"] in ("run_finished", "run_failed"):
                self._end = event
            self._show(event)

    def _judge(self, status: str, details: str) -> Verdict:
        deadline = time.monotonic() + EVENTS_GRACE_S
        while not self._end and status == "finished:completed" and time.monotonic() < deadline:
            self._hand_on()
            time.sleep(LOOK_S)
        self._hand_on()
        if status == "finished:completed" and self._end.get("event") == "run_finished":
            return Verdict(True, report=str(self._end.get("report", "")))
        lines = self._flower.last_lines(self._run_id)
        if self._end.get("event") == "run_failed":
            return Verdict(False, str(self._end.get("reason")), lines)
        if status == "finished:completed":
            return Verdict(False, "Flower calls the run completed, but it has written no result.", lines)
        cause = details.removeprefix("Simulation failed with exception: ") or "Flower gives no cause"
        if "heartbeat" in cause:
            cause += ": the server's process has died, perhaps for lack of memory"
        return Verdict(False, f"{cause} ({status})", lines)


def record_end(run_folder: Path, verdict: Verdict) -> None:
    """Close the diary of a run whose server could not do it any more."""
    path = run_folder / "events.jsonl"
    if verdict.ok or not path.exists() or storage.is_locked(run_folder):
        return
    with contextlib.suppress(JointDiffError, OSError):
        events = effective(read_events(path))
        if not any(event["event"] in ("run_finished", "run_failed") for event in events):
            resume = how_to_resume(run_folder.name)
            EventLog(path).append("run_failed", reason=verdict.cause, duration_s=None, resume=resume)
            write_report(run_folder)
