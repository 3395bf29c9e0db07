"""Watch a run until it ends, and say how it really ended: Flower's own word and the run's events must agree."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdiff.events import parse_event
from simulations.flower_daemon import FlowerDaemon

LOOK_S = 0.3  # between two looks at the files
ASK_S = 30.0  # between two questions to the daemon; each costs a Python process
EVENTS_GRACE_S = 5.0  # for events to arrive once Flower calls a run finished
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TASK_ENDED = re.compile(r"Finished task|Failed task|Stopped task|All logs for run ID")


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
        daemon: FlowerDaemon,
        run_id: str,
        run_folder: Path,
        show: Callable[[dict[str, Any]], None],
        *,
        position: int = 0,
    ) -> None:
        """Prepare to follow.

        Args:
            daemon: The daemon that runs it.
            run_id: Flower's id of the run.
            run_folder: Where events.jsonl appears.
            show: Called with every event.
            position: Bytes of events.jsonl that were there before: those of an attempt that was given up.
        """
        self._daemon = daemon
        self._run_id = run_id
        self._events = Tail(run_folder / "events.jsonl", position)
        self._daemon_lines = Tail(daemon.daemon_log)
        self._show = show
        self._end: dict[str, Any] = {}  # the event run_finished or run_failed

    def wait(self) -> Verdict:
        """Follow until the run has ended.

        Raises:
            RunError: The daemon does not answer any more.
        """
        ask_at = time.monotonic() + ASK_S
        while True:
            self._hand_on()
            if (code := self._daemon.exit_code()) is not None:
                return Verdict(False, f"Flower's daemon ended with code {code} before the run did.", self._last_lines())
            if any(_TASK_ENDED.search(line) for line in self._daemon_lines.lines()) or time.monotonic() > ask_at:
                status = self._daemon.status(self._run_id)
                if status.is_finished:
                    return self._judge(status.status, status.details)
                ask_at = time.monotonic() + (2.0 if self._end else ASK_S)
            time.sleep(LOOK_S)

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
        if self._end.get("event") == "run_failed":
            return Verdict(False, str(self._end.get("reason")), self._last_lines())
        if status == "finished:completed" and self._end:
            return Verdict(True, report=str(self._end.get("report", "")))
        if status == "finished:completed":
            return Verdict(False, "Flower calls the run completed, but it has written no result.", self._last_lines())
        cause = details.removeprefix("Simulation failed with exception: ") or "Flower gives no cause"
        if "heartbeat" in cause:
            cause += ": the server's process has died, perhaps for lack of memory"
        return Verdict(False, f"{cause} ({status})", self._last_lines())

    def _last_lines(self, count: int = 20) -> tuple[str, ...]:
        time.sleep(0.5)  # the log reaches us through two processes
        text = (
            self._daemon.run_log.read_text(encoding="utf-8", errors="replace") if self._daemon.run_log.exists() else ""
        )
        lines = [_COLOURS.sub("", line).rstrip() for line in text.splitlines()]
        return tuple([line for line in lines if line][-count:])
