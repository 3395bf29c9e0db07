"""The one supervisor of a site's SuperNode: who it is, how it stands, and what it says, in the site's own folder.

`supernode.pid` is locked by the process that wrote it for as long as it lives, so a file that was left behind, or a
number that another process has by now, is not believed. `supernode.json` says how it stands, `supernode.log` what
happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.site_log import one_line
from jointdiff import storage
from jointdiff.errors import RunError

PID_FILE = "supernode.pid"
STATE_FILE = "supernode.json"
LOG_FILE = "supernode.log"
_SCHEMA_VERSION = 1
_REPEAT_S = 60.0  # the same sentence is written no more often
_LOG_BYTES = 10_000_000  # a log that is longer becomes supernode.log.1 at the next start
_ATTEMPTS = 20


@dataclass(frozen=True)
class Standing:
    """How the SuperNode stands, as its supervisor last saw it. Times are UTC, ISO 8601; '' = never."""

    since: str  # the supervisor runs
    connected: bool = False
    last_contact: str = ""  # the federation was heard of; while connected, that is now
    node_id: str = ""
    restarts: int = 0
    problem: dict[str, str] | None = None  # time, cause, text, remedy of the last one; it may be over


def now() -> str:
    """Return the time as it is written."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the site's only supervisor, or refuse.

    Raises:
        RunError: Another one runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / PID_FILE, "a+", encoding="utf-8") as file:
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # whoever only looks lets go at once
                if attempt + 1 < _ATTEMPTS:
                    time.sleep(0.05)
        else:
            raise RunError(
                f"This site's SuperNode runs already (process {running(folder)}). `jointdiff-client status` shows how "
                "it stands, `jointdiff-client stop` ends it."
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def running(folder: Path) -> int | None:
    """Return the process id of the site's supervisor; None where none lives."""
    try:
        with open(folder / PID_FILE, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20) or b"0") or None
    except (OSError, ValueError):
        pass
    return None


class Journal:
    """Writes how it stands and what is said. A full disk stops neither: the SuperNode goes on."""

    def __init__(self, folder: Path, echo: Callable[[str], None] | None = None) -> None:
        """Begin, with a fresh log where the old one is long.

        Args:
            echo: Takes every line as well.
        """
        self.folder = folder
        self.standing = Standing(since=now())
        self._echo = echo
        self._said: dict[str, float] = {}
        log = folder / LOG_FILE
        with contextlib.suppress(OSError):
            if log.exists() and log.stat().st_size > _LOG_BYTES:
                os.replace(log, log.with_suffix(".log.1"))
        self.update()

    def update(self, **changes: Any) -> None:
        """Change how it stands, and write it."""
        self.standing = replace(self.standing, **changes)
        with contextlib.suppress(OSError):
            told = {"schema_version": _SCHEMA_VERSION, "pid": os.getpid(), **asdict(self.standing)}
            storage.write_json(self.folder / STATE_FILE, told)

    def say(self, text: str) -> None:
        """Write one line, at most once a minute the same."""
        text = one_line(text)
        moment = time.monotonic()
        if moment - self._said.get(text, -_REPEAT_S) < _REPEAT_S:
            return
        self._said = {key: at for key, at in self._said.items() if moment - at < _REPEAT_S} | {text: moment}
        with contextlib.suppress(OSError), open(self.folder / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(f"{now()} {text}\n")
        if self._echo:
            self._echo(text)


def standing(folder: Path) -> dict[str, Any]:
    """Return what `supernode.json` says, {} where there is none or it is damaged."""
    try:
        found = storage.read_json(folder / STATE_FILE)
    except RunError:
        return {}
    return found if isinstance(found, dict) else {}
