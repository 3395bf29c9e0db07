"""A site's SuperNode as people see it: started, stopped, and how it stands. What keeps it running: supervisor.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from client import site_process
from client.site_config import SiteConfig
from client.supervisor import Supervisor, check_ready
from jointdiff import processes
from jointdiff.errors import RunError
from jointdiff.views.live.site import read_site

_START_S = 30.0  # how long `start` watches for a first result
_STOP_S = 40.0


def run_in_foreground(config: SiteConfig, echo: Callable[[str], None] | None = None) -> None:
    """Supervise in this process until SIGTERM or Ctrl-C; raises as `Supervisor`."""
    supervisor = Supervisor(config, echo=echo)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: supervisor.stopping.set())
    try:
        supervisor.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(config: SiteConfig) -> dict[str, Any]:
    """Start a supervisor that outlives this process; return how it stands once it is connected or knows a problem.

    Raises:
        ConfigError: As `check_ready`.
        RunError: One runs already, or it ended at once.
    """
    check_ready(config)
    if (pid := site_process.running(config.folder)) is not None:
        raise RunError(
            f"This site's SuperNode runs already (process {pid}). `jointdiff-client status` shows how it stands."
        )
    (config.folder / site_process.STATE_FILE).unlink(missing_ok=True)
    command = [sys.executable, "-m", "client.cli", "start", "--foreground", "--quiet", "--site", str(config.folder)]
    log = config.folder / site_process.LOG_FILE
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, umask=0o077
        )  # fmt: skip
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RunError(f"The supervisor of Flower's SuperNode ended at once. {log} says why.")
        found = site_process.standing(config.folder)
        if found.get("connected") or found.get("problem"):
            break
        time.sleep(0.2)
    return status(config.folder)


def stop(folder: Path) -> bool:
    """End the site's supervisor and its SuperNode; return False where none ran.

    Raises:
        RunError: It does not end.
    """
    pid = site_process.running(folder)
    if pid is None:
        return False
    birth = processes.birth_of(pid)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while birth and processes.birth_of(pid) == birth:
        if time.monotonic() > deadline:
            raise RunError(f"The supervisor of this site's SuperNode (process {pid}) does not end: kill -9 {pid}")
        time.sleep(0.1)
    return True


def status(folder: Path) -> dict[str, Any]:
    """Return how the site's SuperNode stands, from the site's own folder alone.

    Returns:
        running, pid, since, connected, last_contact, node_id, restarts, problem (the last one: None, or a mapping with
        `time`, `cause`, `text`, `remedy`; it is over where connected), and of the last run `run`, `round` and
        `changed` (seconds since 1970).
    """
    pid = site_process.running(folder)
    told = site_process.standing(folder)
    runs = [run for run in read_site(folder)["runs"] if run["last_round"] is not None]
    last: Mapping[str, Any] = runs[0] if runs else {}
    connected = bool(pid and told.get("connected"))
    return {
        "running": pid is not None,
        "pid": pid,
        "since": told.get("since") if pid else None,
        "connected": connected,
        "last_contact": site_process.now() if connected else told.get("last_contact") or None,
        "node_id": told.get("node_id") or None,
        "restarts": told.get("restarts", 0),
        "problem": told.get("problem"),
        "run": last.get("name"),
        "round": last.get("last_round"),
        "changed": last.get("changed"),
    }
