"""Which processes there are below another one, who a process is, and how all of them end.

Flower's daemon, its executor, the simulation and Ray's half dozen helpers live in several sessions, and some are
orphaned on the way. So the guard (simulations/guard.py) adopts orphans (Linux) and ends its whole tree, by process id.
A deployment's processes outlive the command that started them: they are known by their id *and* when they started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc/self/stat").exists()


class _Process(NamedTuple):
    pid: int
    parent: int
    group: int
    state: str  # a letter


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
    for process in _process_table():
        children.setdefault(process.parent, []).append(process.pid)
        if process.state.startswith("Z"):
            zombies.add(process.pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            found.add(pid)
            waiting.append(pid)
    return found - zombies


def group_members(group: int) -> set[int]:
    """Return the ids of the living processes of a process group; of one started in its own session: all that it left.

    The kernel gives the id of a group to no new process while one of its members lives.
    """
    return {p.pid for p in _process_table() if p.group == group and not p.state.startswith("Z")}


def is_alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    return any(p.pid == pid and not p.state.startswith("Z") for p in _process_table())


def birth_of(pid: int) -> str:
    """Return when a process started, as a text that no other process of the same id ever had; '' = it does not run."""
    if not _PROC:
        listing = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return listing.stdout.strip()
    with contextlib.suppress(OSError, IndexError):
        facts = _stat(f"/proc/{pid}")
        if not facts[0].startswith("Z"):
            return f"{_boot()}:{facts[19]}"  # ticks since the boot; another boot counts anew
    return ""


def of_this_boot(birth: str) -> bool:
    """Say whether a process with this birth can have left anything that runs: it is still the same boot."""
    return not _PROC or birth.startswith(f"{_boot()}:")


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the resident memory of processes, added up; 0 where it cannot be known."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("VmRSS:"):
                    total += 1024 * int(line.split()[1])
    return total


def _process_table() -> list[_Process]:
    if not _PROC:
        command = ["ps", "-A", "-o", "pid=,ppid=,pgid=,state="]
        listing = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = [line.split() for line in listing.stdout.splitlines()]
        return [_Process(int(row[0]), int(row[1]), int(row[2]), row[3]) for row in rows if len(row) == 4]
    table = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                state, parent, group = _stat(entry.path)[:3]
                table.append(_Process(int(entry.name), int(parent), int(group), state))
    return table


def _stat(folder: str) -> list[str]:
    """Return the fields from the state on: pid (name) state ppid pgrp ...; the name may hold spaces and brackets."""
    return Path(folder, "stat").read_text().rpartition(")")[2].split()


def end_processes(root: int, *, grace_s: float = 4.0) -> None:
    """End everything below `root`, not `root` itself: ask, wait up to `grace_s`, then kill."""
    end_all(lambda: descendants(root), grace_s=grace_s)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_all(living: Callable[[], set[int]], *, grace_s: float) -> bool:
    """End all processes that `living` names, at every look: ask, wait up to `grace_s`, then kill.

    Returns:
        Whether all had ended before they were killed.
    """
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)):
        deadline = time.monotonic() + wait_s
        signalled: set[int] = set()
        while alive := living():
            for pid in alive - signalled:  # new ones may appear while the old ones end
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            signalled |= alive
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return number == signal.SIGTERM
    return False
