"""The run's diary: events.jsonl, one JSON object a line, appended and never rewritten.

Fields of every line: schema_version, time (UTC, ISO 8601), event. The kinds are listed in EVENTS.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jointdiff.errors import RunError
from jointdiff.storage import plain

SCHEMA_VERSION = 1
EVENTS = (
    "run_started", "run_resumed", "phase_started", "server_set", "round_started", "hospital_replied", "hospital_failed",
    "hospital_refused", "update_rejected", "update_questioned", "round_repeated", "securely_summed", "server_trained",
    "round_aggregated", "evaluated", "checkpoint_saved", "sampled", "explained", "run_finished", "run_failed",
)  # fmt: skip
_RESERVED = ("schema_version", "time", "event")
_log = logging.getLogger(__name__)


class EventLog:
    """Appends events to one file, each line flushed and synced before `append` returns.

    A line that a killed process left half-written is closed first, so that it can spoil no line but itself.
    """

    def __init__(self, path: Path, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Open nothing yet: the file is made by the first event.

        Args:
            path: events.jsonl of the run.
            listener: Called with each event after it is on disk, e.g. a progress printer.
        """
        self.path = Path(os.path.abspath(path))
        self._listener = listener
        self._lock = threading.Lock()

    def append(self, event: str, **fields: Any) -> dict[str, Any]:
        """Write one event and return it as written.

        Args:
            event: One of EVENTS.
            fields: What happened; JSON types, numpy scalars, paths. NaN and infinities become null.

        Raises:
            ValueError: The event is unknown, or a field takes a reserved name.
        """
        if event not in EVENTS:
            raise ValueError(f"Unknown event {event!r}: add it to jointdiff.events.EVENTS.")
        taken = [name for name in _RESERVED if name in fields]
        if taken:
            raise ValueError(f"Event {event!r} may not set {taken}: these belong to the log.")
        record = {"schema_version": SCHEMA_VERSION, "time": _now(), "event": event, **plain(fields)}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._write(line)
        if self._listener is not None:
            self._listener(record)
        return record

    def _write(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line)  # mode "a" writes at the end wherever the position is
            file.flush()
            os.fsync(file.fileno())


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the events of a run; lines that were cut by a crash are dropped with a warning.

    Raises:
        RunError: The file is missing, or a line is of a newer schema than this version knows.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. Is this the folder of a run?") from error
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = parse_event(line)
        if record is None:
            _log.warning("%s: line %d of %d is cut or damaged; dropped.", path, number, len(lines))
            continue
        if record.get("schema_version", 0) > SCHEMA_VERSION:
            raise RunError(
                f"{path}: line {number} has schema_version {record['schema_version']}, this version of JointDiff "
                f"reads up to {SCHEMA_VERSION}. Read it with the newer version that wrote it."
            )
        events.append(record)
    return events


def parse_event(line: bytes | str) -> dict[str, Any] | None:
    """Return the event of one line, or None where the line is no whole event (cut while it is being written)."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
