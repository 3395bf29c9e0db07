"""Follow the files that grow while a run goes: events.jsonl read on from where the last look ended.

A run of a hundred hospitals writes tens of thousands of lines; to read them all again every second would take from the
training what the page is there to show.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jointdiff.errors import RunError
from jointdiff.events import SCHEMA_VERSION, parse_event

Event = dict[str, Any]


class Follower:
    """The events of one run so far. A line counts when it is whole: its end may still be on its way to the disk."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet.

        Args:
            path: events.jsonl of the run.
        """
        self.path = Path(path)
        self._forget()

    def _forget(self) -> None:
        self.events: list[Event] = []
        self.num_damaged = 0  # whole lines that are no event
        self._offset = 0
        self._rest = b""
        self._inode = -1

    def read(self) -> list[Event]:
        """Take in what was written since the last call; return all events, [] where there is no file yet.

        Raises:
            RunError: The file cannot be read, or was written by a newer version.
        """
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._forget()  # another file took the place of the one that was read
                    self._inode = status.st_ino
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            self._forget()  # a run that is just being made has none yet
            return self.events
        except OSError as error:
            raise RunError(f"events.jsonl of the run cannot be read: {error.strerror or error}.") from error
        self._offset += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        for line in lines:
            self._take(line)
        return self.events

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        event = parse_event(line)
        if event is None:
            self.num_damaged += 1
            return
        version = event.get("schema_version", 0)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            self._forget()
            raise RunError(
                f"events.jsonl has schema_version {version!r}, this version of JointDiff reads up to {SCHEMA_VERSION}. "
                "Look at the run with the newer version that wrote it."
            )
        self.events.append(event)
