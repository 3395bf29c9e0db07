"""Processes that outlive the command that starts them: started in a session of their own, found again, stopped.

A pid file alone proves nothing: after a crash another process may have its number. So it also holds when the process
started, and one that does not fit is not believed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from jointdiff import processes
from jointdiff.errors import RunError
from jointdiff.storage import write_atomic
from server.deployment.control import last_lines

STOP_S = 20.0  # between SIGTERM and SIGKILL
_LOG_BYTES = 20_000_000  # a log that is longer becomes NAME.log.1 at the next start
_SUPERVISED = "INVOCATION_ID"  # systemd sets it for what it starts


@dataclass(frozen=True)
class Running:
    """A process that runs now."""

    pid: int
    birth: str  # when it started, as `processes.birth_of` says it
    since: str  # the same for people: UTC, ISO 8601
    supervised: bool = False  # by systemd, which would start it again


@dataclass(frozen=True)
class Service:
    """One process of a deployment, known by its name."""

    name: str
    folder: Path  # of its pid file and its log

    @property
    def pid_file(self) -> Path:
        """Where it is written who the process is."""
        return self.folder / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        """What it has printed. Under systemd that is in the journal instead."""
        return self.folder / f"{self.name}.log"

    def running(self) -> Running | None:
        """Return the process if it runs; a stale or damaged pid file is not believed."""
        found = self._recorded()
        return found if found is not None and processes.birth_of(found.pid) == found.birth else None

    def _recorded(self) -> Running | None:
        try:
            found = Running(**json.loads(self.pid_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return found if type(found.pid) is int and isinstance(found.birth, str) and found.birth else None

    def members(self) -> set[int]:
        """Return the ids of the living processes that it has started, its own included, and also after its death."""
        running = self.running()
        if running is not None:
            return processes.group_members(running.pid) | processes.descendants(running.pid) | {running.pid}
        left = self._recorded()
        if left is None or processes.is_alive(left.pid) or not processes.of_this_boot(left.birth):
            return set()  # the number is another process's by now, or a group's of before the last boot
        return processes.group_members(left.pid)

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start it, detached: it outlives this process and hears no Ctrl-C of this terminal.

        Raises:
            RunError: The program cannot be started.
        """
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            os.replace(self.log, self.log.with_suffix(".log.1"))
        try:
            with open(self.log, "ab") as log:
                process = subprocess.Popen(
                    command, cwd=self.folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True, umask=0o077,
                )  # fmt: skip
        except OSError as error:
            raise RunError(f"{command[0]} cannot be started: {error.strerror or error}.") from None
        self._record(process.pid)
        return process

    def become(self, command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
        """Turn this process into the service, for a supervisor such as systemd: same id, output where ours goes."""
        os.chdir(self.folder)
        os.umask(0o077)
        self._record(os.getpid())
        os.execve(command[0], list(command), dict(environment))

    def _record(self, pid: int) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        running = Running(pid, processes.birth_of(pid), since, bool(os.environ.get(_SUPERVISED)))
        write_atomic(self.pid_file, json.dumps(asdict(running)) + "\n", private=True)

    def stop(self, *, grace_s: float = STOP_S) -> bool:
        """End it and whatever it has started: ask, wait, then kill; return whether asking was enough."""
        obeyed = processes.end_all(self.members, grace_s=grace_s)
        self.pid_file.unlink(missing_ok=True)
        return obeyed

    def last_lines(self, count: int = 20) -> tuple[str, ...]:
        """Return the end of its log."""
        return last_lines(self.log.read_text(encoding="utf-8", errors="replace"), count) if self.log.exists() else ()
