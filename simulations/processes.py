"""Which processes a run has started, and how all of them end.

Flower's daemon, its executor, the simulation and Ray's half dozen helpers live in several sessions, and some are
orphaned on the way. So the guard (guard.py) adopts orphans (Linux) and ends its whole tree, by process id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make grandchildren whose parent ends children of this process, so that none is lost. Linux; elsewhere nothing."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies, even by -9. For `preexec_fn`."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants(root: int) -> set[int]:
    """Return the ids of all living processes below `root`; zombies do not count."""
    children: dict[int, list[int]] = {}
    zombies = set()
    for pid, parent, state in _process_table():
        children.setdefault(parent, []).append(pid)
        if state.startswith("Z"):
            zombies.add(pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            found.add(pid)
            waiting.append(pid)
    return found - zombies


def is_alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    return any(other == pid and not state.startswith("Z") for other, _, state in _process_table())


def _process_table() -> list[tuple[int, int, str]]:
    """Return (process id, parent's id, state letter) of every process."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=True)
        rows = [line.split() for line in listing.stdout.splitlines()]
        return [(int(row[0]), int(row[1]), row[2]) for row in rows if len(row) == 3]
    table = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                # pid (name) state ppid ...; the name may hold spaces and brackets
                state, parent = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:2]
                table.append((int(entry.name), int(parent), state))
    return table


def end_processes(root: int, *, grace_s: float = 4.0) -> None:
    """End everything below `root`, not `root` itself: ask, wait up to `grace_s`, then kill."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)):
        deadline = time.monotonic() + wait_s
        signalled: set[int] = set()
        while alive := descendants(root):
            for pid in alive - signalled:  # new ones may appear while the old ones end
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            signalled |= alive
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
